"""What a comparison rests on, as one JSON file; comparable only where the data agree."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from probinterp.criticism.comparison.cells import Cells, Flags, count_cells
from probinterp.criticism.comparison.margins import Declared
from probinterp.criticism.comparison.paired import PairedAccuracy, paired_accuracy

MUST_AGREE = ("image_hash", "template_hash", "preprocess_hash")


class IncomparableRecordsError(ValueError):
    """Two records rest on different images, templates or preprocessing."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One comparison of a network and its proxy, with all that is needed to repeat it.

    Parameters
    ----------
    backbone
        Name, hash of the weights and ``quick_gelu`` of the network.
    hook_names
        Where activations were read and replaced.
    proxy_hash
        Hash of the proxy's checkpoint.
    dataset, split
        Name and part of the data.
    image_hash, template_hash, preprocess_hash
        Hash of the image identifiers, of class names and templates (see :func:`hash_of`), and of
        the picture transform.
    tokens, window, scope, kept
        Which tokens and layers were replaced, where sources were left out, and which were kept.
    cells
        The four counts.
    test, interval
        Names of the test and of the interval.
    margin, margin_declared, margin_declared_at
        The margin, whether it was fixed before or after the data were seen, and the time.
    family, correction
        Name of the family of comparisons and its correction.
    seeds
        Seeds of everything random.
    wall_time
        Seconds.
    versions
        Package versions.
    numbers
        Results, such as p-values and intervals.
    """

    backbone: dict[str, Any]
    hook_names: Sequence[str]
    proxy_hash: str
    dataset: str
    split: str
    image_hash: str
    template_hash: str
    preprocess_hash: str
    tokens: str
    window: Sequence[int]
    cells: Cells
    margin: float
    margin_declared: Declared
    margin_declared_at: str
    scope: str = "all"
    kept: Sequence[int] | None = None
    test: str = "mid-p McNemar"
    interval: str = "Tango"
    family: str | None = None
    correction: str | None = None
    seeds: dict[str, int] = field(default_factory=dict)
    wall_time: float | None = None
    versions: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.margin_declared not in get_args(Declared):
            raise ValueError(
                f"margin_declared must be before or after, got {self.margin_declared!r}."
            )
        for name in MUST_AGREE:
            if not getattr(self, name):
                raise ValueError(f"{name} must not be empty: records are compared by it.")
        object.__setattr__(self, "cells", Cells(*self.cells).checked())
        for name in ("hook_names", "window", "kept"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))

    @property
    def n(self) -> int:
        """Number of images."""
        return self.cells.n

    def to_json(self, path: str | Path) -> None:
        """Write the record."""
        content = asdict(self) | {"cells": self.cells._asdict(), "n": self.n}
        Path(path).write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")

    @classmethod
    def from_json(cls, path: str | Path) -> Record:
        """Read a record.

        Raises
        ------
        ValueError
            If a field is missing or unknown.
        """
        content = json.loads(Path(path).read_text())
        n = content.pop("n", None)
        known = {f.name for f in fields(cls)}
        if set(content) != known:
            raise ValueError(
                f"{path} is no record: missing {sorted(known - set(content))}, unknown "
                f"{sorted(set(content) - known)}."
            )
        record = cls(**content | {"cells": Cells(**content["cells"])})
        if n != record.n:
            raise ValueError(f"{path} says {n} images, but its cells hold {record.n}.")
        return record


def hash_of(values: Sequence[Any] | str) -> str:
    """SHA-256 of a text, or of the JSON of a list such as class names and templates."""
    text = values if isinstance(values, str) else json.dumps(list(values), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def require_comparable(first: Record, second: Record) -> None:
    """Raise :class:`IncomparableRecordsError` unless both rest on the same images and texts."""
    differing = [n for n in (*MUST_AGREE, "n") if getattr(first, n) != getattr(second, n)]
    if differing:
        raise IncomparableRecordsError(
            f"records of {first.dataset} ({first.n:,} images) and {second.dataset} "
            f"({second.n:,} images) cannot be compared: {', '.join(differing)} differ."
        )


def compare_records(
    first: Record, second: Record, correct_first: Flags, correct_second: Flags, **options: Any
) -> PairedAccuracy:
    """Compare the proxies of two records on the images that both were evaluated on.

    Parameters
    ----------
    first, second
        Records.
    correct_first, correct_second
        Whether each proxy recognises each image, (N,) each: a record has counts only, and counts
        cannot be paired.
    **options
        As for :func:`paired_accuracy`.

    Raises
    ------
    IncomparableRecordsError
        If images, templates or preprocessing differ.
    ValueError
        If the images recognised are not as many as the record says.
    """
    require_comparable(first, second)
    cells = count_cells(correct_first, correct_second)
    for record, found in (
        (first, cells.both + cells.network_only),
        (second, cells.both + cells.proxy_only),
    ):
        expected = record.cells.both + record.cells.proxy_only
        if (cells.n, found) != (record.n, expected):
            raise ValueError(
                f"the record says {expected:,} of {record.n:,} images are recognised, got "
                f"{found:,} of {cells.n:,}."
            )
    return paired_accuracy(correct_first, correct_second, **options)
