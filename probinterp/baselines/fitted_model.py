"""Any of our models as a fitted baseline."""

from __future__ import annotations

import torch
from torch import Tensor

from probinterp.baselines.covariances import predicted_covariance, rows_of_study
from probinterp.baselines.protocol import require_known
from probinterp.inference import ArrayData, log_predictive_density, posterior, predictive_draws
from probinterp.models import Batch, ProbabilisticModel
from probinterp.models.spike_slab_loadings import active_loadings

ROWS = 1024  # whose density is evaluated at a time


class FittedModel:
    """A fitted model behind the interface of comparisons.

    Densities and covariances are closed forms where the model has them
    (:meth:`~probinterp.models.ProbabilisticModel.exact_marginal`); otherwise densities are
    importance-weighted estimates, lower bounds on average, and covariances are those of predictive
    draws.

    Parameters
    ----------
    model
        Fitted model with a local site ``"z"``.
    train
        Data that it was fitted to.
    n_samples
        Importance samples of a density without closed form.
    n_draws
        Observations drawn for a covariance without closed form.
    seed
        Seed of both.
    """

    def __init__(
        self,
        model: ProbabilisticModel,
        train: ArrayData,
        *,
        n_samples: int = 100,
        n_draws: int = 20_000,
        seed: int = 0,
    ) -> None:
        self.model, self.train, self.seed = model, train, seed
        self.n_samples, self.n_draws = n_samples, n_draws
        self.studies = studies_of(train)

    @property
    def support(self) -> Tensor | None:
        """Features with an active loading that is more likely slab; None for dense loadings."""
        inclusion = getattr(self.model, "inclusion_probability", None)
        loadings = getattr(self.model, "loadings", None)
        if inclusion is None or loadings is None:
            return None
        return active_loadings(loadings.detach(), inclusion.detach()).cpu()

    @property
    def block(self) -> Tensor | None:
        """Block of each factor; None for models of one study."""
        block = getattr(self.model, "block", None)
        return None if block is None else block.cpu()

    @property
    def covariance_draws(self) -> int | None:
        """Number of draws behind a covariance, or None."""
        return None if self._is_exact(self.train.batch(torch.arange(1))) else self.n_draws

    @torch.no_grad()
    def log_density(self, batch: Batch) -> Tensor:
        """Log density of each observation, in double precision."""
        require_known(_study(batch), self.studies)
        rows = torch.arange(len(batch.x)).split(ROWS)
        parts = [self._log_density(batch.rows(index)) for index in rows]
        return torch.cat(parts).double().cpu()

    @torch.no_grad()
    def covariance(self, study: int) -> Tensor:
        """Covariance matrix of the features in a study."""
        require_known(study, self.studies)
        one = self.train.batch(rows_of_study(self.train, study)[:1])
        if self._is_exact(one):
            exact = self.model.exact_marginal(one._replace(mask=None))
            assert exact is not None
            return exact.covariance_matrix[0].double().cpu()

        def replicate(batch: Batch, seed: int) -> Tensor:
            return next(iter(predictive_draws(self.model, batch, 1, seed=seed))).replicate().cpu()

        return predicted_covariance(
            replicate, self.train, study, n_draws=self.n_draws, seed=self.seed
        )

    @torch.no_grad()
    def scores(self, batch: Batch) -> Tensor:
        """Posterior means of the factors."""
        require_known(_study(batch), self.studies)
        exact = self.model.exact_locals(batch)
        z = posterior(self.model, batch)["z"] if exact is None else exact["z"]
        return z.mean.cpu()

    def _is_exact(self, batch: Batch) -> bool:
        if batch.size_factor is not None:
            return False  # a marginal of counts is not at size factor 1
        return self.model.exact_marginal(batch._replace(mask=None)) is not None

    def _log_density(self, batch: Batch) -> Tensor:
        exact = self.model.exact_marginal(batch)
        if exact is not None:
            return exact.log_prob(batch.x)
        return log_predictive_density(self.model, batch, n_samples=self.n_samples, seed=self.seed)


def studies_of(train: ArrayData) -> tuple[int, ...]:
    """Studies that data have; without study labels they are all of study 0."""
    return (0,) if train.study is None else tuple(train.study.unique().tolist())


def _study(batch: Batch) -> Tensor | int:
    return 0 if batch.study is None else batch.study
