"""What was read from an AnnData, and what was left out."""

from __future__ import annotations

from dataclasses import dataclass

from probinterp.genomics.validation import listing


@dataclass(frozen=True)
class LoadReport:
    """What :func:`from_anndata` has read and what it has left out.

    Parameters
    ----------
    source
        ``"X"`` or the layer.
    storage
        ``"dense"``, ``"csr"``, ``"backed dense"`` or ``"backed csr"``.
    counts
        Whether the values were checked to be counts.
    size_factor_key
        ``obs`` column of the library sizes; None for row sums or no size factors.
    dropped_obs, dropped_vars
        Names of all-zero cells and genes that ``drop_empty=True`` has left out.
    ignored_vars
        Genes of the query that the reference data (``like``) do not have.
    reordered_vars
        Whether genes were put into the order of the reference data.
    unused_studies, unused_batches
        Categories of the study and the batch column without any cell, left out.
    study_key, batch_key
        ``obs`` columns of the studies and the technical batches, or None.
    unknown_studies
        Studies that the reference data lack; their cells have the study index -1.
    """

    source: str
    storage: str
    counts: bool
    size_factor_key: str | None = None
    dropped_obs: tuple[str, ...] = ()
    dropped_vars: tuple[str, ...] = ()
    ignored_vars: tuple[str, ...] = ()
    reordered_vars: bool = False
    unused_studies: tuple[str, ...] = ()
    unused_batches: tuple[str, ...] = ()
    study_key: str | None = None
    batch_key: str | None = None
    unknown_studies: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.source} ({self.storage}, {'counts' if self.counts else 'values'})"]
        for what in (
            "dropped_obs",
            "dropped_vars",
            "ignored_vars",
            "unused_studies",
            "unused_batches",
            "unknown_studies",
        ):
            if names := getattr(self, what):
                lines.append(f"{what}: {len(names)}: {listing(names)}")
        if self.reordered_vars:
            lines.append("genes put into the order of the reference data")
        return "\n".join(lines)
