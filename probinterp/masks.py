"""Data of which some entries are not observed."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions import Independent


class MaskedFeatures(TorchDistribution):
    r"""Independent features of which some are not observed.

    .. math:: \log p(x_i) = \sum_j m_{ij} \log p_j(x_{ij}), \qquad m_{ij} \in \{0, 1\}

    ``sample``, ``mean`` and ``variance`` are those of all features, unobserved ones too.

    Parameters
    ----------
    base
        Distribution with event shape (G,): an ``Independent`` one, or one with a method
        ``feature_log_prob`` that returns the terms of the sum, (..., G).
    observed
        True where a feature is observed, boolean, (..., G).
    validate_args
        As in ``torch.distributions``.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(
        self, base: TorchDistribution, observed: Tensor, validate_args: bool | None = None
    ) -> None:
        self.base, self.observed = base, observed
        super().__init__(base.batch_shape, base.event_shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint | None:
        """That of all features."""
        return self.base.support

    @property
    def mean(self) -> Tensor:
        """Mean, (..., G)."""
        return self.base.mean

    @property
    def variance(self) -> Tensor:
        """Variance, (..., G)."""
        return self.base.variance

    def expand(self, batch_shape: Any, _instance: Any = None) -> MaskedFeatures:
        """Distribution with a larger batch shape."""
        return MaskedFeatures(self.base.expand(batch_shape), self.observed, validate_args=False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw all features."""
        return self.base.sample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of the observed features of ``value`` (..., G), shape (...)."""
        value = torch.where(self.observed, value, 0.0)  # NaN there would poison the gradients
        base = self.base
        separate = isinstance(base, Independent)
        terms = base.base_dist.log_prob(value) if separate else base.feature_log_prob(value)
        return torch.where(self.observed, terms, 0.0).sum(-1)


def complete_or_masked(
    complete: TorchDistribution, mask: Tensor | None, features: slice | Tensor
) -> TorchDistribution:
    """Leave the features out that ``mask`` (B, G) says are not observed; all are without one.

    Parameters
    ----------
    complete
        Distribution of the chosen features, batch shape (..., B).
    mask
        True where observed, for all features; or None.
    features
        The features that were chosen.
    """
    return complete if mask is None else MaskedFeatures(complete, mask[:, features])


def filled(shown: Tensor, mask: Tensor | None, typical: Tensor | float) -> Tensor:
    """``shown`` (B, G) with a typical value, a number or (G,), where nothing is observed."""
    if mask is None:
        return shown
    return shown.where(mask, typical.detach() if isinstance(typical, Tensor) else typical)


def std_mean(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Standard deviation (divisor N) and mean of the observed entries of each column, (G,)."""
    if mask is None:
        spread, center = torch.std_mean(x, dim=0, correction=0)
        return spread, center
    n_observed = mask.sum(0).clamp(min=1)
    center = torch.where(mask, x, 0.0).sum(0) / n_observed
    square = torch.where(mask, (x - center).square(), 0.0).sum(0) / n_observed
    return square.sqrt(), center
