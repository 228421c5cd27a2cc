"""Independent features with a level in each study: no factors at all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from probinterp.baselines.fitted_model import studies_of
from probinterp.baselines.model_baselines import LikelihoodOf, require_gaussian
from probinterp.baselines.protocol import require_known
from probinterp.inference import ArrayData
from probinterp.inference.data import as_batch
from probinterp.likelihoods import Likelihood, by_study
from probinterp.models import Batch

ITERATIONS = 1000  # of L-BFGS


@dataclass(frozen=True)
class StudyMeans:
    r"""Maximum likelihood of :math:`x_{ij} \sim p(x \mid \ell_{m_i j})`, independent features.

    With ``NegativeBinomialLikelihood`` the mean of a count is its size factor times the mean of
    its study, and the inverse dispersion is that of its feature.

    Parameters
    ----------
    likelihood
        Makes the likelihood of a number of features.
    name
        How it is called in tables.
    """

    likelihood: LikelihoodOf
    name: str = "study means"

    def fit(self, train: ArrayData, seed: int) -> FittedStudyMeans:
        """Fit to the data by L-BFGS; nothing is random."""
        batch = _prepared(as_batch(train))
        assert batch.study is not None
        likelihood = self.likelihood(train.x.shape[1]).double()
        require_gaussian(train, likelihood)
        if not likelihood.separable:
            raise ValueError(
                f"{type(likelihood).__name__} makes features dependent; study means need "
                "independent ones."
            )
        likelihood.initialize(batch)
        studies = studies_of(train)
        level = nn.Parameter(batch.x.new_zeros(max(studies) + 1, train.x.shape[1]))
        with torch.no_grad():
            for m in studies:
                level[m] = likelihood.location(batch.rows(batch.study == m))
        fitted = FittedStudyMeans(likelihood, level, studies, train.size_factor is not None)
        _maximise(fitted, batch)
        return fitted


class FittedStudyMeans:
    """Levels of the features in each study, and the parameters of their likelihood.

    Parameters
    ----------
    likelihood
        Distribution of the features, in double precision.
    level
        Level of each feature in each study, (M, G).
    studies
        Studies that the data had.
    counts
        Whether the data had size factors.
    """

    support = block = covariance_draws = None

    def __init__(
        self, likelihood: Likelihood, level: Tensor, studies: tuple[int, ...], counts: bool
    ) -> None:
        self.likelihood, self.level, self.studies, self.counts = likelihood, level, studies, counts

    def law(self, batch: Batch) -> TorchDistribution:
        """Distribution of the observations of a batch with studies."""
        return self.likelihood(by_study(self.level, batch), batch)

    @torch.no_grad()
    def log_density(self, batch: Batch) -> Tensor:
        """Log density of each observation."""
        batch = _prepared(batch)
        assert batch.study is not None
        require_known(batch.study, self.studies)
        return self.law(batch).log_prob(batch.x)

    @torch.no_grad()
    def covariance(self, study: int) -> Tensor:
        """Variances of the features in a study on the diagonal."""
        require_known(study, self.studies)
        x = self.level[study : study + 1]
        ones = x.new_ones(1) if self.counts else None
        return self.law(Batch(x, torch.tensor([study]), ones)).variance[0].diag()

    def scores(self, batch: Batch) -> None:
        """None: there are no factors."""
        return


def _maximise(fitted: FittedStudyMeans, batch: Batch) -> None:
    parameters = [fitted.level, *fitted.likelihood.parameters()]
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=ITERATIONS,
        tolerance_grad=1e-8,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = -fitted.law(batch).log_prob(batch.x).mean()
        value.backward()
        return value

    optimizer.step(loss)


def _prepared(batch: Batch) -> Batch:
    """The batch in double precision, with study 0 where it has no studies."""
    study = torch.zeros(len(batch.x), dtype=torch.long) if batch.study is None else batch.study
    size_factor = None if batch.size_factor is None else batch.size_factor.double()
    return batch._replace(x=batch.x.double(), study=study, size_factor=size_factor)
