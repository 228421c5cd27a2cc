"""One self-contained HTML page with what was found: findings, figures, tables, settings."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from numbers import Number
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined, Template
from matplotlib.axes import Axes
from matplotlib.figure import Figure as MatplotlibFigure
from pandas.api.types import is_bool_dtype, is_numeric_dtype

RESOLUTION = 150  # dots per inch of embedded figures
MISSING = "–"


@dataclass(frozen=True, eq=False)
class Figure:
    """A picture with its caption.

    Parameters
    ----------
    figure
        Matplotlib figure, or axes that stand for their figure.
    caption
        What is to be seen, printed below the picture.
    alt
        Text for readers who do not see the picture; made of the titles and axis labels by
        default.
    """

    figure: MatplotlibFigure | Axes
    caption: str
    alt: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.figure, (MatplotlibFigure, Axes)):
            kind = type(self.figure).__name__
            raise TypeError(f"figure must be a matplotlib figure or axes, got {kind}.")


@dataclass(frozen=True, eq=False)
class Table:
    """A table with its caption; floats have four significant digits unless a format is given.

    Parameters
    ----------
    frame
        Data frame with at least one column; the index is printed unless it only counts rows.
    caption
        What the table shows, printed above it.
    formats
        How the floats of a column are printed, by its name: ``{"p": ".2g", "z": "+.2f"}``.
    """

    frame: pd.DataFrame
    caption: str
    formats: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.frame, pd.DataFrame):
            raise TypeError(f"frame must be a pandas DataFrame, got {type(self.frame).__name__}.")
        if self.frame.shape[1] == 0:
            raise ValueError(f"the table {self.caption!r} has no columns.")
        unknown = [name for name in self.formats if name not in self.frame.columns]
        if unknown:
            known = ", ".join(map(str, self.frame.columns))
            raise ValueError(f"formats of unknown columns {unknown}; the columns are {known}.")


@dataclass(frozen=True, eq=False)
class Section:
    """One part of the report: text, a summary, then figures, then tables.

    Parameters
    ----------
    title
        Heading, also listed in the contents.
    text
        Plain text; an empty line starts a new paragraph.
    figures, tables
        What follows the text and the summary, in this order.
    summary
        Table between the text and the figures.
    """

    title: str
    text: str = ""
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    summary: Table | None = None


@dataclass(frozen=True)
class Finding:
    """One sentence at the head of the report.

    Parameters
    ----------
    statement
        What was found.
    passed
        True or False for the outcome of a check, None for a remark.
    """

    statement: str
    passed: bool | None = None


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    sections: Sequence[Section],
    findings: Sequence[Finding] = (),
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Write one HTML file that needs no other file, no network and no scripts.

    Figures are embedded as PNG; texts are escaped. The file is written under a temporary name
    and renamed, so that ``path`` never holds half a report. Figures that pyplot manages are
    closed once the file is written.

    Parameters
    ----------
    path
        Where to write, ending in ``.html``; the folder must exist and an older report there is
        replaced.
    title
        Heading of the page.
    sections
        Parts of the report, at least one.
    findings
        Sentences at the head of the page.
    settings
        Names and values needed to repeat the work (seed, versions, options), printed at the end.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ValueError
        If there is no section or the name does not end in ``.html``.
    FileNotFoundError
        If the folder does not exist.
    TypeError
        If an item of ``sections`` or ``findings`` is something else.
    """
    path = Path(path)
    if path.suffix.lower() != ".html":
        raise ValueError(f"a report's name must end in .html, got {path.name!r}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path.name}: there is no folder {path.parent}.")
    if len(sections) == 0:
        raise ValueError("a report needs at least one section, got none.")
    _check_items("sections", sections, Section)
    _check_items("findings", findings, Finding)
    for section in sections:
        _check_items(f"figures of section {section.title!r}", section.figures, Figure)
        tables = [*section.tables, *([] if section.summary is None else [section.summary])]
        _check_items(f"tables of section {section.title!r}", tables, Table)
    page = _template().render(
        title=title, findings=findings, sections=sections, settings=dict(settings or {})
    )
    _write_atomically(path, page)
    _close([figure for section in sections for figure in section.figures])
    return path


def _check_items(what: str, items: Sequence[Any], kind: type) -> None:
    for item in items:
        if not isinstance(item, kind):
            got = type(item).__name__
            raise TypeError(f"{what} must be {kind.__name__} objects, got {got}.")


def _template() -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "png": _png,
        "alt": _alt,
        "size": _size,
        "header": _header,
        "body": _body,
        "text": _text,
    }
    source = resources.files("probinterp.reporting").joinpath("report.html.jinja")
    return environment.from_string(source.read_text(encoding="utf-8"))


def _canvas(figure: Figure) -> MatplotlibFigure:
    if isinstance(figure.figure, Axes):
        return figure.figure.figure.canvas.figure
    return figure.figure


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    _canvas(figure).savefig(buffer, format="png", dpi=RESOLUTION, facecolor="white")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _alt(figure: Figure) -> str:
    if figure.alt:
        return figure.alt
    texts = [text for ax in _canvas(figure).axes for text in _words(ax)]
    return "; ".join(" ".join(text.split()) for text in texts) or figure.caption


def _words(ax: Axes) -> list[str]:
    """Title and axis labels of one panel, or the label of a colour bar."""
    if ax.get_label() == "<colorbar>":
        return [f"colours: {label}" for label in (ax.get_ylabel(), ax.get_xlabel()) if label]
    titles = [ax.get_title(loc=place) for place in ("left", "center", "right")]
    labels = {"horizontal axis": ax.get_xlabel(), "vertical axis": ax.get_ylabel()}
    return [text for text in titles if text] + [f"{k}: {v}" for k, v in labels.items() if v]


def _size(figure: Figure) -> tuple[int, int]:
    """Width and height on the page, in CSS pixels of 1/96 inch."""
    width, height = _canvas(figure).get_size_inches()
    return round(96 * width), round(96 * height)


def _header(frame: pd.DataFrame) -> list[tuple[str, bool]]:
    """Name of every column and whether it holds numbers, after the printed index."""
    names = [] if _counts_rows(frame) else frame.index.names
    index = [("" if name is None else str(name), False) for name in names]
    types = [is_numeric_dtype(dtype) and not is_bool_dtype(dtype) for dtype in frame.dtypes]
    return index + [(_text(n), numeric) for n, numeric in zip(frame.columns, types, strict=True)]


def _body(table: Table) -> Iterator[tuple[tuple[Any, ...], list[tuple[str, bool]]]]:
    """Index cells, none if the index is not printed, and text and kind of the values of a row."""
    frame = table.frame
    forms = [table.formats.get(name, ".4g") for name in frame.columns]
    for label, values in zip(frame.index, frame.itertuples(index=False, name=None), strict=True):
        whole = label if isinstance(label, tuple) else (label,)
        cells = [(_text(v, f), _is_numeric(v)) for v, f in zip(values, forms, strict=True)]
        yield () if _counts_rows(frame) else whole, cells


def _counts_rows(frame: pd.DataFrame) -> bool:
    return isinstance(frame.index, pd.RangeIndex) and frame.index.name is None


def _is_numeric(value: Any) -> bool:
    return isinstance(value, Number) and not isinstance(value, (bool, np.bool_))


def _text(value: Any, form: str = ".4g") -> str:
    """Text of a cell or a setting."""
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(item) for item in value)
    if value is None or value is pd.NA or value is pd.NaT:
        return MISSING
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (float, np.floating)):
        return MISSING if np.isnan(value) else format(value, form).replace("inf", "∞")
    return str(value)


def _write_atomically(path: Path, text: str) -> None:
    """Write a neighbour of ``path`` and rename it; text that is not Unicode becomes ``?``."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(text.encode("utf-8", errors="replace"))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _close(figures: Sequence[Figure]) -> None:
    import matplotlib.pyplot as plt

    for figure in figures:
        plt.close(_canvas(figure))
