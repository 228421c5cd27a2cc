"""Univariate marginals of a likelihood: one distribution per entry of the data."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Beta,
    Binomial,
    Distribution,
    Geometric,
    Independent,
    LowRankMultivariateNormal,
    MixtureSameFamily,
    MultivariateNormal,
    NegativeBinomial,
    Normal,
    Poisson,
    StudentT,
)


def marginals(likelihood: Distribution) -> Distribution:
    """Marginal distribution of every entry given its own latents, batch shape (N, G).

    Parameters
    ----------
    likelihood
        Distribution with batch shape (N,) and event shape (G,): an ``Independent``, a
        multivariate normal, a ``MixtureSameFamily`` of these, or any other that has a method
        ``marginals()``, or ``feature_log_prob(value)`` with values of shape (N, G) and perhaps
        ``feature_cdf(value)``.

    Raises
    ------
    TypeError
        If it is none of them.
    """
    own = getattr(likelihood, "marginals", None)
    if own is not None:
        return own()
    if isinstance(likelihood, Independent) and not likelihood.base_dist.event_shape:
        return likelihood.base_dist
    if isinstance(likelihood, MultivariateNormal | LowRankMultivariateNormal):
        return Normal(likelihood.mean, likelihood.variance.sqrt(), validate_args=False)
    if isinstance(likelihood, MixtureSameFamily):
        return MixtureMarginals(likelihood)
    if hasattr(likelihood, "feature_log_prob"):
        return FeatureMarginals(likelihood)
    raise TypeError(
        "values per feature need the marginals of the likelihood, and "
        f"{type(likelihood).__name__} does not give them: use an Independent (Pyro: to_event(1)), "
        "or give the distribution a method marginals() that returns one with batch shape (N, G)."
    )


class FeatureMarginals(Distribution):
    """Entries of a distribution that can tell its density feature by feature.

    Parameters
    ----------
    likelihood
        Distribution with batch shape (N,), event shape (G,) and a method ``feature_log_prob``.
    """

    arg_constraints: dict[str, Any] = {}

    def __init__(self, likelihood: Any) -> None:
        self._likelihood = likelihood
        super().__init__(likelihood.batch_shape + likelihood.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """Support of the features."""
        return self._likelihood.support

    @property
    def mean(self) -> Tensor:
        """Mean of every entry, shape (N, G)."""
        return self._likelihood.mean

    @property
    def variance(self) -> Tensor:
        """Variance of every entry, shape (N, G)."""
        return self._likelihood.variance

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of every entry, shape (N, G)."""
        return self._likelihood.feature_log_prob(value)

    def cdf(self, value: Tensor) -> Tensor:
        """Distribution function at every entry, shape (N, G)."""
        known = getattr(self._likelihood, "feature_cdf", None)
        if known is None:
            raise TypeError(
                f"the distribution function of {type(self._likelihood).__name__} is not known; "
                "give the distribution a method feature_cdf(value)."
            )
        return known(value)


class MixtureMarginals(Distribution):
    """Entries of a mixture of K components, each with marginals of its own.

    Parameters
    ----------
    mixture
        Mixture with batch shape (N,) and event shape (G,).
    """

    arg_constraints: dict[str, Any] = {}

    def __init__(self, mixture: MixtureSameFamily) -> None:
        self._components = marginals(mixture.component_distribution)  # batch shape (N, K, G)
        self._log_weights = mixture.mixture_distribution.logits.unsqueeze(-1)  # (N, K, 1)
        self._mixture = mixture
        shape = mixture.batch_shape + mixture.event_shape
        super().__init__(shape, validate_args=False)

    @property
    def support(self) -> Any:
        """Support of the components."""
        return self._components.support

    @property
    def mean(self) -> Tensor:
        """Mean of every entry, shape (N, G)."""
        return self._mixture.mean

    @property
    def variance(self) -> Tensor:
        """Variance of every entry, shape (N, G)."""
        return self._mixture.variance

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of every entry, shape (N, G)."""
        density = self._components.log_prob(value.unsqueeze(-2))
        return (self._log_weights + density).logsumexp(-2)

    def cdf(self, value: Tensor) -> Tensor:
        """Distribution function at every entry, shape (N, G)."""
        return (self._log_weights.exp() * cumulative(self._components, value.unsqueeze(-2))).sum(-2)


def cumulative(law: Distribution, value: Tensor) -> Tensor:
    r"""Distribution function :math:`F(x) = P(X \le x)` of univariate laws, entry by entry.

    Parameters
    ----------
    law
        Univariate distributions, for instance the marginals of a likelihood.
    value
        Where to evaluate, a shape that broadcasts with that of ``law``.

    Returns
    -------
    Tensor
        Probabilities in the dtype and on the device of ``value``.

    Raises
    ------
    TypeError
        If nothing is known about the distribution function of ``law``.

    Notes
    -----
    The incomplete beta function, which torch lacks, is SciPy's: negative binomial, binomial, beta
    and Student laws are evaluated on the CPU in double precision.
    """
    if isinstance(law, Poisson):
        inside = torch.special.gammaincc(value.clamp(min=0).floor() + 1, law.rate)
        return torch.where(value < 0, 0.0, inside)
    if isinstance(law, Bernoulli):
        return torch.where(value < 0, 0.0, torch.where(value < 1, 1 - law.probs, 1.0))
    if isinstance(law, Geometric):
        fails = torch.log1p(-law.probs) * (value.floor() + 1)
        return torch.where(value < 0, 0.0, -torch.expm1(fails))
    if isinstance(law, NegativeBinomial | Binomial):
        return _cumulative_of_trials(law, value)
    if isinstance(law, Beta | StudentT):
        return _through_incomplete_beta(law, value)
    try:
        return law.cdf(value)
    except NotImplementedError:
        raise TypeError(
            f"the distribution function of {type(law).__name__} is not known; give the "
            "distribution a method cdf(value)."
        ) from None


def _cumulative_of_trials(law: NegativeBinomial | Binomial, value: Tensor) -> Tensor:
    from scipy.special import betainc  # slow to import, seldom needed

    k, count = np.floor(_on_cpu(value)), _on_cpu(law.total_count)
    failure = _on_cpu(torch.sigmoid(-law.logits))
    if isinstance(law, NegativeBinomial):
        result = betainc(count, k.clip(0) + 1, failure)
    else:
        left = np.where(k < count, count - k, 1.0)
        result = np.where(k < count, betainc(left, k.clip(0) + 1, failure), 1.0)
    return torch.as_tensor(np.where(k < 0, 0.0, result)).to(value)


def _through_incomplete_beta(law: Beta | StudentT, value: Tensor) -> Tensor:
    from scipy.special import betainc, stdtr  # slow to import, seldom needed

    x = _on_cpu(value)
    if isinstance(law, StudentT):
        result = stdtr(_on_cpu(law.df), (x - _on_cpu(law.loc)) / _on_cpu(law.scale))
    else:
        shapes = _on_cpu(law.concentration1), _on_cpu(law.concentration0)
        result = betainc(*shapes, x.clip(0, 1))
    return torch.as_tensor(result).to(value)


def _on_cpu(numbers: Tensor) -> np.ndarray:
    return numbers.detach().double().cpu().numpy()


def mid_pit(likelihood: Distribution, x: Tensor) -> Tensor:
    r"""Probability integral transform of every entry under its marginal, shape (N, G).

    .. math:: u_{ij} = F_{ij}(x_{ij}) \text{ (continuous)}, \qquad
        u_{ij} = F_{ij}(x_{ij}) - \tfrac12 P(X_{ij} = x_{ij}) \text{ (discrete)}

    Parameters
    ----------
    likelihood
        Distribution with batch shape (N,) and event shape (G,) that has :func:`marginals`.
    x
        Data, shape (N, G).

    Returns
    -------
    Tensor
        Values in [0, 1], shape (N, G).

    Raises
    ------
    TypeError
        If the likelihood has no marginals or these no distribution function.

    References
    ----------
    Predictive model assessment for count data (Czado, Gneiting and Held, 2009), section 2.1,
    whose randomised version the mid-value replaces by its expectation, so that the transform
    stays a pure function.
    """
    law = marginals(likelihood)
    probability = cumulative(law, x)
    if not _is_discrete(law):
        return probability
    return (probability - law.log_prob(x).exp() / 2).clamp(0, 1)


def _is_discrete(law: Distribution) -> bool:
    try:
        support = law.support
    except NotImplementedError:
        support = None
    if support is None:
        raise TypeError(
            f"{type(law).__name__} does not say whether it is discrete; give the distribution a "
            "property support."
        )
    return support.is_discrete
