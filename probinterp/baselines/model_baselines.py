"""Baselines that are models of ours, fitted by stochastic variational inference or by ECM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from probinterp.baselines.fitted_model import FittedModel, studies_of
from probinterp.inference import (
    ArrayData,
    fit_restarts,
    mend_blocks,
    mend_codes,
    screen_specific,
    stability,
)
from probinterp.inference.data import as_batch
from probinterp.likelihoods import GaussianLikelihood, Likelihood
from probinterp.models import (
    VAE,
    MultiStudyFactorAnalysis,
    MultiStudySparseVAE,
    ProbabilisticModel,
    SparseVAE,
    fit_ecm,
)

SUBSAMPLE = 0.8

LikelihoodOf = Callable[[int], Likelihood]
"""Makes the likelihood of a number of features: a class, or a ``functools.partial`` of one."""

FitModel = Callable[[ArrayData, int], ProbabilisticModel]
"""Fits a model to data with a seed."""


@dataclass(frozen=True)
class ModelBaseline:
    """A model and how it is fitted.

    Parameters
    ----------
    name
        How it is called in tables.
    fit_model
        Function of the training data and a seed that returns a fitted model.
    reading
        Options of :class:`FittedModel`: ``n_samples``, ``n_draws``. ``dataclasses.replace`` changes
        them in what the functions below return.
    """

    name: str
    fit_model: FitModel
    reading: dict[str, int] = field(default_factory=dict)

    def fit(self, train: ArrayData, seed: int) -> FittedModel:
        """Fit the model to the data."""
        return FittedModel(self.fit_model(train, seed), train, seed=seed, **self.reading)


def sparse_vae(
    n_factors: int,
    *,
    likelihood: LikelihoodOf | None = None,
    name: str = "pooled sparse VAE",
    n_restarts: int = 1,
    fitting: dict[str, Any] | None = None,
    **options: Any,
) -> ModelBaseline:
    """Sparse VAE of all observations, whatever their study.

    Parameters
    ----------
    n_factors
        Number of factors, K.
    likelihood
        Makes the likelihood of a number of features; default that of the model.
    name
        How it is called in tables.
    n_restarts
        Fits with different seeds, of which that with the largest objective is kept.
    fitting
        Options of :func:`probinterp.fit`.
    **options
        Further arguments of :class:`~probinterp.models.SparseVAE`.
    """
    make = partial(_pooled, SparseVAE, n_factors, likelihood, options)
    return ModelBaseline(name, partial(_fit_best, make, n_restarts, fitting or {}))


def vae(
    n_factors: int,
    *,
    likelihood: LikelihoodOf | None = None,
    name: str = "pooled VAE",
    n_restarts: int = 1,
    fitting: dict[str, Any] | None = None,
    **options: Any,
) -> ModelBaseline:
    """VAE of all observations, whatever their study; arguments as for :func:`sparse_vae`."""
    make = partial(_pooled, VAE, n_factors, likelihood, options)
    return ModelBaseline(name, partial(_fit_best, make, n_restarts, fitting or {}))


def multistudy_sparse_vae(
    n_shared: int,
    n_specific: int | Sequence[int],
    *,
    likelihood: LikelihoodOf | None = None,
    name: str = "multi-study sparse VAE",
    n_restarts: int = 1,
    mended: bool = True,
    n_refits: int = 0,
    fitting: dict[str, Any] | None = None,
    **options: Any,
) -> ModelBaseline:
    """Multi-study sparse VAE.

    Parameters
    ----------
    n_shared, n_specific
        Numbers of columns of the shared block and of the blocks of the studies.
    likelihood, name, n_restarts, fitting
        As for :func:`sparse_vae`.
    mended
        Whether blocks and codes are mended after the fit, see
        :func:`~probinterp.inference.mend_blocks` and :func:`~probinterp.inference.mend_codes`.
    n_refits
        Refits to 80 % of the observations, by which specific factors that do not come back are
        taken out, see :func:`~probinterp.inference.screen_specific`; 0 to keep all.
    **options
        Further arguments of :class:`~probinterp.models.MultiStudySparseVAE`.
    """
    make = partial(_multistudy, n_shared, n_specific, likelihood, options)
    fit_model: FitModel = partial(_fit_best, make, n_restarts, fitting or {})
    if mended:
        fit_model = partial(_mended, fit_model, fitting or {})
    if n_refits:
        fit_model = partial(_screened, fit_model, fitting or {}, n_refits)
    return ModelBaseline(name, fit_model)


def multistudy_factor_analysis(
    n_shared: int,
    n_specific: int | Sequence[int],
    *,
    name: str = "multi-study FA (ECM)",
    **options: Any,
) -> ModelBaseline:
    """Linear multi-study factor analysis by maximum likelihood, for Gaussian data.

    Parameters
    ----------
    n_shared, n_specific
        Numbers of factors that all studies share and of those of the studies.
    name
        How it is called in tables.
    **options
        Options of :func:`~probinterp.models.fit_ecm` but the seed.
    """
    return ModelBaseline(name, partial(_by_ecm, n_shared, n_specific, options))


def seeded_model(make: Callable[[], ProbabilisticModel], seed: int) -> ProbabilisticModel:
    """Model with the starting weights of a seed; the caller's random state is kept."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def _fit_best(
    make: Callable[[ArrayData], ProbabilisticModel],
    n_restarts: int,
    fitting: dict[str, Any],
    train: ArrayData,
    seed: int,
) -> ProbabilisticModel:
    seeds = range(seed, seed + n_restarts)
    return fit_restarts(
        partial(make, train), train, seeds=seeds, **{"progress": False} | fitting
    ).best


def _mended(
    fit_model: FitModel, fitting: dict[str, Any], train: ArrayData, seed: int
) -> ProbabilisticModel:
    options = {"max_epochs": 200, "progress": False, "seed": seed} | fitting
    model = mend_blocks(fit_model(train, seed), train, **options).model
    return mend_codes(model, train, **options).model


def _screened(
    fit_model: FitModel, fitting: dict[str, Any], n_refits: int, train: ArrayData, seed: int
) -> ProbabilisticModel:
    options = {"max_epochs": 200, "progress": False, "seed": seed} | fitting
    model = fit_model(train, seed)
    seeds = range(seed + 1, seed + 1 + n_refits)
    found = stability(
        lambda part, again: fit_model(ArrayData.of(as_batch(part)), again),
        train,
        model,
        seeds=seeds,
        subsample=SUBSAMPLE,
    )
    return screen_specific(model, found, train, **options).model


def _pooled(
    model: Callable[..., ProbabilisticModel],
    n_factors: int,
    likelihood: LikelihoodOf | None,
    options: dict[str, Any],
    train: ArrayData,
) -> ProbabilisticModel:
    n_features = train.x.shape[1]
    return model(n_features, n_factors, **_with_likelihood(likelihood, n_features), **options)


def _multistudy(
    n_shared: int,
    n_specific: int | Sequence[int],
    likelihood: LikelihoodOf | None,
    options: dict[str, Any],
    train: ArrayData,
) -> ProbabilisticModel:
    n_features = train.x.shape[1]
    made = _with_likelihood(likelihood, n_features)
    n_studies = _n_studies(train)
    return MultiStudySparseVAE(n_features, n_shared, n_specific, n_studies, **made, **options)


def _by_ecm(
    n_shared: int,
    n_specific: int | Sequence[int],
    options: dict[str, Any],
    train: ArrayData,
    seed: int,
) -> ProbabilisticModel:
    require_gaussian(train, GaussianLikelihood(1))
    shape = (train.x.shape[1], n_shared, n_specific, _n_studies(train))
    model = MultiStudyFactorAnalysis(*shape).double()
    fit_ecm(model, train, seed=seed, **options)
    return model.to(train.x.dtype)


def require_gaussian(train: ArrayData, likelihood: Likelihood) -> None:
    """Raise ``ValueError`` where counts, known by their size factors, meet a Gaussian model."""
    if isinstance(likelihood, GaussianLikelihood) and train.size_factor is not None:
        raise ValueError(
            "data with size factors are counts, of which a Gaussian model has no density; give a "
            "likelihood of counts, for example RoundedLogNormalLikelihood."
        )


def _with_likelihood(likelihood: LikelihoodOf | None, n_features: int) -> dict[str, Any]:
    return {} if likelihood is None else {"likelihood": likelihood(n_features)}


def _n_studies(train: ArrayData) -> int:
    return max(studies_of(train)) + 1
