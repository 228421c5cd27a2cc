"""Mixture of independent categorical variables, also known as latent class analysis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Categorical, Independent
from torch.nn.functional import one_hot

from probinterp.models.base import require_positive
from probinterp.models.mixtures.mixture import Mixture, require_matrix


@dataclass(frozen=True, eq=False)
class MultinomialMixtureParameters:
    """One value of the unknowns of a multinomial mixture.

    Parameters
    ----------
    weights
        Probabilities of the classes, shape (..., K).
    probabilities
        Of each level of each variable in each class, shape (..., K, G, C); 0 beyond a
        variable's number of levels.
    """

    weights: Tensor
    probabilities: Tensor

    @property
    def components(self) -> Independent:
        """The classes, batch shape (..., K) and event shape (G,)."""
        categorical = Categorical(self.probabilities, validate_args=False)
        return Independent(categorical, 1, validate_args=False)


class MultinomialMixture(Mixture[MultinomialMixtureParameters]):
    r"""Latent classes within which categorical variables are independent.

    .. math:: \pi \sim \mathrm{Dirichlet}(a, \dots, a), \quad
        \phi_{kj} \sim \mathrm{Dirichlet}(b, \dots, b), \quad
        x_{ij} \mid c_i = k \sim \mathrm{Categorical}(\phi_{kj})

    Parameters
    ----------
    n_components
        Number of classes, K.
    n_levels
        Number of levels of each variable, G integers; data are codes 0, 1, ..., as floats.
    concentration
        Parameter a > 0 of the Dirichlet prior of the weights.
    level_concentration
        Parameter b > 0 of the Dirichlet prior of the level probabilities.

    Raises
    ------
    ValueError
        If a prior parameter is not positive, or there is no variable.

    References
    ----------
    The Posterior Predictive Null (Moran, Cunningham and Blei, 2022), the multinomial mixture;
    Exploratory latent structure analysis (Goodman, 1974).

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([[0.0, 2.0]] * 20 + [[1.0, 0.0]] * 20)
    >>> MultinomialMixture(2, (2, 3)).em(x).probabilities.shape
    torch.Size([2, 2, 3])
    """

    def __init__(
        self,
        n_components: int,
        n_levels: Sequence[int],
        *,
        concentration: float = 2.0,
        level_concentration: float = 2.0,
    ) -> None:
        super().__init__(n_components, concentration)
        if len(n_levels) == 0:
            raise ValueError("n_levels must name the levels of at least one variable, got none.")
        for j, levels in enumerate(n_levels):
            require_positive(**{f"n_levels[{j}]": levels})
        if level_concentration <= 0:
            raise ValueError(f"level_concentration must be positive, got {level_concentration}.")
        self.n_levels, self.level_concentration = tuple(n_levels), level_concentration

    def _require_data(self, x: Tensor) -> None:
        require_matrix(x)
        levels = x.new_tensor(self.n_levels)
        if x.shape[1] != len(levels):
            raise ValueError(f"x must have {len(levels)} variables, got shape {tuple(x.shape)}.")
        wrong = ((x != x.floor()) | (x < 0) | (x >= levels)).any(0)
        if wrong.any():
            j = int(wrong.nonzero()[0])
            raise ValueError(
                f"variable {j} must hold codes 0 to {self.n_levels[j] - 1}, "
                f"got values between {x[:, j].min():g} and {x[:, j].max():g}."
            )

    def _require_proper_prior(self) -> None:
        """Every prior that the constructor accepts is proper."""

    def _points(self, x: Tensor) -> Tensor:
        return self._indicators(x).flatten(-2)

    def _maximise(
        self, x: Tensor, responsibilities: Tensor, previous: MultinomialMixtureParameters | None
    ) -> MultinomialMixtureParameters:
        if self.level_concentration < 1:
            raise ValueError(
                "with a level_concentration below 1 the posterior has no mode inside the simplex, "
                f"got {self.level_concentration}; use gibbs, or at least 1."
            )
        excess = self._counts(x, responsibilities) + (self.level_concentration - 1) * self._used(x)
        total = excess.sum(-1, keepdim=True)
        # a flat prior leaves the levels of an empty class undetermined: the same for each
        flat = self._used(x) / self._used(x).sum(-1, keepdim=True)
        probabilities = torch.where(total > 0, excess / total.clamp_min(1e-300), flat)
        return MultinomialMixtureParameters(self._modal_weights(responsibilities), probabilities)

    def _sample(
        self, x: Tensor, labels: Tensor, previous: MultinomialMixtureParameters | None
    ) -> MultinomialMixtureParameters:
        used = self._used(x)
        # a Dirichlet draw as normalised gammas; those beyond a variable's levels are dropped
        shapes = torch.where(used > 0, self._counts(x, labels) + self.level_concentration, 1.0)
        gammas = torch.distributions.Gamma(shapes, 1.0, validate_args=False).sample() * used
        probabilities = gammas / gammas.sum(-1, keepdim=True)
        return MultinomialMixtureParameters(self._sampled_weights(labels), probabilities)

    def _used(self, x: Tensor) -> Tensor:
        """1 where a variable has that level, 0 beyond, shape (G, C)."""
        levels = torch.tensor(self.n_levels, device=x.device).unsqueeze(1)
        return (torch.arange(max(self.n_levels), device=x.device) < levels).to(x.dtype)

    def _indicators(self, x: Tensor) -> Tensor:
        return one_hot(x.long(), max(self.n_levels)).to(x.dtype)

    def _counts(self, x: Tensor, responsibilities: Tensor) -> Tensor:
        return torch.einsum("n...k,n...gc->...kgc", responsibilities, self._indicators(x))

    def _log_prior(self, parameters: MultinomialMixtureParameters) -> Tensor:
        probabilities = parameters.probabilities
        used = probabilities.new_tensor(self.level_concentration - 1) * self._used(probabilities)
        return torch.xlogy(used, probabilities).sum()

    def _select(
        self, parameters: MultinomialMixtureParameters, order: Tensor
    ) -> MultinomialMixtureParameters:
        return MultinomialMixtureParameters(
            parameters.weights[order], parameters.probabilities[order]
        )
