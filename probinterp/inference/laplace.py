"""Gaussian approximation of point-estimated parameters around the estimate."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from probinterp.inference.data import Data, as_batch
from probinterp.inference.predictive import ModelDraw, Scoring, predictive_draws
from probinterp.inference.scores import generative_parameters, row_scores
from probinterp.models.base import AnyBatch, ProbabilisticModel

MAX_PARAMETERS = 2000
ROWS_PER_PARAMETER = 10  # an information from fewer rows than this is noise in some direction
FLAT = 1e-6  # share of the largest information below which a direction counts as flat


class Laplace(NamedTuple):
    r"""Normal distribution of parameters around their estimate; made by :func:`laplace`.

    Attributes
    ----------
    model
        Fitted model.
    names
        Names of the parameters, in the order in which they are strung together.
    root
        Square root of the covariance, (P, R); R is the rank of the information.
    """

    model: ProbabilisticModel
    names: tuple[str, ...]
    root: Tensor

    @property
    def n_parameters(self) -> int:
        """Number of directions that the data say something about, R."""
        return self.root.shape[1]

    def moved(self, step: Tensor) -> ProbabilisticModel:
        """Copy of the model with ``step`` (P,) added to its parameters."""
        model = copy.deepcopy(self.model)
        parameters = dict(model.named_parameters())
        chosen = [parameters[name] for name in self.names]
        with torch.no_grad():
            for one, part in zip(chosen, step.split([p.numel() for p in chosen]), strict=True):
                one.add_(part.view_as(one).to(one))
        return model


class LaplaceDraws:
    """Draws of parameters around the estimate; made by :func:`laplace_draws`.

    Attributes
    ----------
    approximation
        The distribution that parameters are drawn from.
    reference
        Draw at the estimate, for plug-in discrepancies.
    local, scoring
        As in :func:`predictive_draws`.
    point_estimate
        False: parameters are drawn.
    n_obs
        Number of units of the fit.
    globals_from
        How the globals were drawn, in words.
    """

    local = "prior"
    point_estimate = False

    def __init__(
        self,
        approximation: Laplace,
        batch: AnyBatch,
        n_draws: int,
        n_obs: int,
        scoring: Scoring,
        seed: int,
    ) -> None:
        self.approximation, self.batch, self.n_draws = approximation, batch, n_draws
        self.n_obs, self.scoring, self.seed = n_obs, scoring, seed
        model = approximation.model
        self.reference = predictive_draws(model, batch, 1, scoring=scoring, seed=seed).reference
        self.globals_from = (
            f"Laplace approximation in {approximation.n_parameters} directions of "
            f"{len(approximation.root)} parameters"
        )

    def __len__(self) -> int:
        return self.n_draws

    def __iter__(self) -> Iterator[ModelDraw]:
        root = self.approximation.root
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.n_draws):
            seed = int(torch.randint(2**62, (), generator=generator))
            noise = torch.randn(root.shape[1], generator=generator, dtype=root.dtype)
            model = self.approximation.moved(root @ noise.to(root.device))
            draws = predictive_draws(model, self.batch, 1, scoring=self.scoring, seed=seed)
            yield next(iter(draws))


def laplace_draws(
    model: ProbabilisticModel,
    data: Data,
    batch: AnyBatch,
    n_draws: int,
    *,
    scoring: Scoring = "inferred",
    n_samples: int = 32,
    max_parameters: int = MAX_PARAMETERS,
    seed: int = 0,
) -> LaplaceDraws:
    r"""Draws from a normal distribution of the parameters of a point-estimated model.

    Replicates then carry the uncertainty of the estimate, at the price of some gradients
    instead of refits. As with :func:`bootstrap_draws` the variance of a likelihood discrepancy
    is repaired and its bias is not. The guide keeps the estimate's encoder.

    Parameters
    ----------
    model
        Fitted model: the reference.
    data
        The data that it was fitted to: their number and covariates.
    batch
        Held-out observations: covariates and shape of the replicates, locals from the prior.
    n_draws
        Number of draws, S.
    scoring
        As in :func:`predictive_draws`.
    n_samples, max_parameters
        As in :func:`laplace`.
    seed
        Same seed, same draws.

    Returns
    -------
    LaplaceDraws
        Iterable of draws with the estimate as ``reference``.

    Raises
    ------
    ValueError
        As :func:`laplace`, or if ``n_draws`` is not positive.
    """
    if not isinstance(n_draws, int) or n_draws < 1:
        raise ValueError(f"n_draws must be a positive integer, got {n_draws!r}.")
    found = laplace(model, data, n_samples=n_samples, max_parameters=max_parameters, seed=seed)
    return LaplaceDraws(found, batch, n_draws, len(data), scoring, seed)


def laplace(
    model: ProbabilisticModel,
    data: Data,
    *,
    n_samples: int = 32,
    max_parameters: int = MAX_PARAMETERS,
    seed: int = 0,
) -> Laplace:
    r"""Approximate distribution of the generative parameters around their estimate.

    .. math:: \theta \sim N\big(\hat\theta,\ (N I)^+\big), \quad
        I = E_{x \sim p(\cdot \mid \hat\theta)}\, s(x) s(x)^\top, \quad
        s(x) = \nabla_\theta \log p(x \mid \theta)
             = E[\nabla_\theta \log p(x, z \mid \theta) \mid x]

    The expectation is taken over rows that the model simulates with the covariates of the
    data, at least ten for each parameter: from few rows the inverse of an empirical information
    is far too wide. The pseudo-inverse drops flat directions such as rotations of factors,
    along which the data distribution does not change. Parameters are those that the joint
    density depends on, those of the guide are left out; priors of parameters, too.

    Parameters
    ----------
    model
        Fitted model whose globals are all point estimates.
    data
        The data that it was fitted to: their number and covariates.
    n_samples
        Samples of the local latents for each score, where the model has no closed form.
    max_parameters
        Most parameters, P, that are accepted: the cost grows like P squared.
    seed
        Seed of the simulation.

    Returns
    -------
    Laplace
        The approximation.

    Raises
    ------
    ValueError
        If the model has too many parameters, or globals that are not point estimates.

    References
    ----------
    Fisher's identity for the score: Maximum likelihood from incomplete data via the EM algorithm
    (Dempster, Laird and Rubin, 1977), equation 2.16 and discussion.
    """
    draws = predictive_draws(model, as_batch(data), 1, seed=seed)
    if not draws.point_estimate:
        raise ValueError("laplace needs a model whose globals are all point estimates.")
    chosen = generative_parameters(model, as_batch(data, draws.units.batch.x.device), seed)
    n_parameters = sum(p.numel() for p in chosen.values())
    if n_parameters > max_parameters:
        raise ValueError(
            f"the model has {n_parameters} generative parameters, more than max_parameters = "
            f"{max_parameters}; use bootstrap_draws or model_refits."
        )
    n_copies = max(1, -(-ROWS_PER_PARAMETER * n_parameters // len(data)))
    information = torch.zeros(n_parameters, n_parameters, dtype=torch.float64)
    for part in range(n_copies):
        simulated = _simulated(model, draws.units.batch, seed + part)
        score = row_scores(model, simulated, list(chosen.values()), n_samples, seed + part)
        information += (score.mT @ score).cpu() / n_copies
    values, vectors = torch.linalg.eigh(information)
    informed = values > FLAT * values[-1]
    root = vectors[:, informed] / values[informed].sqrt()
    first = next(iter(chosen.values()))
    return Laplace(model, tuple(chosen), root.to(first))


def _simulated(model: ProbabilisticModel, batch: AnyBatch, seed: int) -> AnyBatch:
    draw = next(iter(predictive_draws(model, batch, 1, seed=seed)))
    return batch._replace(x=draw.replicate())
