"""Factor analysis of all observations, whatever their study."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from sklearn.decomposition import FactorAnalysis as SklearnFactorAnalysis

from probinterp.baselines.fitted_model import FittedModel
from probinterp.baselines.model_baselines import LikelihoodOf, require_gaussian, seeded_model
from probinterp.inference import ArrayData, cosine, fit
from probinterp.inference.data import as_batch
from probinterp.likelihoods import GaussianLikelihood
from probinterp.models import FactorAnalysis

TOLERANCE, MAX_ITERATIONS = 1e-3, 20_000  # of scikit-learn, on the total log likelihood
GRADIENT_FITTING: dict[str, Any] = {"max_epochs": 300, "batch_size": 64, "schedule": cosine}
LEARNING_RATE = 1e-2


@dataclass(frozen=True)
class StackedFactorAnalysis:
    """Factor analysis of the stacked studies.

    Gaussian data are fitted by scikit-learn's maximum likelihood; others by stochastic variational
    inference with the given likelihood. ``RoundedLogNormalLikelihood`` makes factor analysis of
    log-normalised counts a density of the counts.

    Parameters
    ----------
    n_factors
        Number of factors, K.
    likelihood
        Makes the likelihood of a number of features; default Gaussian.
    name
        How it is called in tables.
    fitting
        Options of :func:`probinterp.fit` for other likelihoods.
    reading
        Options of :class:`~probinterp.baselines.FittedModel`.
    """

    n_factors: int
    likelihood: LikelihoodOf = GaussianLikelihood
    name: str = "stacked FA"
    fitting: dict[str, Any] = field(default_factory=dict)
    reading: dict[str, int] = field(default_factory=dict)

    def fit(self, train: ArrayData, seed: int) -> FittedModel:
        """Fit to the data."""
        n_features = train.x.shape[1]
        likelihood = self.likelihood(n_features)
        require_gaussian(train, likelihood)
        make = partial(FactorAnalysis, n_features, self.n_factors, likelihood=likelihood)
        model = seeded_model(make, seed)
        assert isinstance(model, FactorAnalysis)
        if isinstance(likelihood, GaussianLikelihood):
            _by_maximum_likelihood(model, train, seed)
        else:
            adam = partial(torch.optim.Adam, lr=LEARNING_RATE)
            defaults = GRADIENT_FITTING | {"optimizer": adam, "progress": False}
            fit(model, train, seed=seed, **defaults | self.fitting)
        return FittedModel(model, train, seed=seed, **self.reading)


@torch.no_grad()
def _by_maximum_likelihood(model: FactorAnalysis, train: ArrayData, seed: int) -> None:
    if train.mask is not None:
        raise ValueError("scikit-learn's factor analysis takes no masked entries, got a mask.")
    found = SklearnFactorAnalysis(
        model.loadings.shape[1], tol=TOLERANCE, max_iter=MAX_ITERATIONS, random_state=seed
    ).fit(as_batch(train).x.double().numpy())
    model.loadings.copy_(torch.from_numpy(found.components_.T))
    model.intercept.copy_(torch.from_numpy(found.mean_))
    likelihood = model.likelihood
    assert isinstance(likelihood, GaussianLikelihood)
    likelihood.log_scale.copy_(0.5 * torch.from_numpy(found.noise_variance_).log())
    exact = model.exact_posterior(model.intercept + torch.eye(len(model.intercept)))
    model.encoder.copy_(exact.mean.mT)  # the guide is the posterior
    model.encoder_bias.copy_(-model.encoder @ model.intercept)
    model.raw_scale.copy_(exact.scale_tril[0])
    model.initialized.fill_(True)
