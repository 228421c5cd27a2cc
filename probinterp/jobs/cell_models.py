"""The models that cells are fitted with: one study, or several."""

from __future__ import annotations

from dataclasses import dataclass

from probinterp.genomics import ExpressionData
from probinterp.inference.posterior import SHARED_NAME
from probinterp.likelihoods import GaussianLikelihood, Likelihood, NegativeBinomialLikelihood
from probinterp.models import MultiStudySparseVAE, SparseVAE

COUNT_SPIKE, COUNT_SLAB = 1.0, 0.01  # rates per cell that count data need
N_SPECIFIC = 3


@dataclass(frozen=True)
class CellModel:
    """Makes sparse VAEs for cells; a call makes a new one.

    Parameters
    ----------
    n_genes, counts
        What the cells are: G, and whether values are counts.
    n_shared, n_specific
        Columns that all studies have, and columns of each study; of one study all are shared.
    n_studies, n_batches
        Number of studies, 0 without, and of technical batches, 0 without.
    n_hidden
        Width of the networks.
    spike, slab
        Rates, or None for those of the model.
    """

    n_genes: int
    counts: bool
    n_shared: int
    n_specific: int
    n_studies: int
    n_batches: int
    n_hidden: int
    spike: float | None
    slab: float | None

    def __call__(self) -> SparseVAE | MultiStudySparseVAE:
        """Make a model with starting values of its own."""
        if not self.n_studies:
            return SparseVAE(
                self.n_genes,
                self.n_shared,
                n_hidden=self.n_hidden,
                spike=self.spike,
                slab=self.slab,
                likelihood=self._likelihood(),
                start="components",
            )
        return MultiStudySparseVAE(
            self.n_genes,
            self.n_shared,
            self.n_specific,
            self.n_studies,
            n_hidden=self.n_hidden,
            spike=self.spike,
            slab=self.slab,
            likelihood=self._likelihood(),
            n_nuisance_levels=self.n_batches,
            start="components",
        )

    def settings(self) -> dict[str, int]:
        """Sizes, to be kept beside the factors."""
        if not self.n_studies:
            return {"n_factors": self.n_shared, "n_hidden": self.n_hidden}
        sizes = {"n_shared": self.n_shared, "n_specific": self.n_specific}
        return sizes | {"n_hidden": self.n_hidden}

    def _likelihood(self) -> Likelihood:
        if self.counts:
            # of several studies, encoders of plain log counts lose shared factors
            return NegativeBinomialLikelihood(self.n_genes, standardize=self.n_studies > 0)
        return GaussianLikelihood(self.n_genes, degrees=3.0)


def cell_model(
    train: ExpressionData,
    n_factors: int,
    n_shared: int | None,
    n_specific: int | None,
    n_hidden: int,
    spike: float | None,
    slab: float | None,
) -> CellModel:
    """Model for training cells, with the rates that counts need.

    Raises
    ------
    ValueError
        If there are studies, but only one, or one that is called ``shared``.
    """
    if train.report.counts:
        spike = COUNT_SPIKE * len(train) if spike is None else spike
        slab = COUNT_SLAB * len(train) if slab is None else slab
    studies = train.study_names or ()
    if len(studies) == 1:
        raise ValueError(
            f"obs[{train.report.study_key!r}] names one study only, {studies[0]!r}: shared and "
            "specific factors need two or more; leave the study column out to fit one study."
        )
    if SHARED_NAME in studies:
        raise ValueError(
            f"a study is called {SHARED_NAME!r}, as the factors of all studies are: rename it in "
            f"obs[{train.report.study_key!r}]."
        )
    return CellModel(
        train.n_vars,
        train.report.counts,
        n_factors if n_shared is None else n_shared,
        (N_SPECIFIC if n_specific is None else n_specific) if studies else 0,
        len(studies),
        len(train.nuisance_names or ()),
        n_hidden,
        spike,
        slab,
    )
