"""Some rows or columns of the data, with a draw that scores just those."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from torch import Tensor
from torch.distributions import Distribution

from probinterp.criticism.draws import PredictiveDraw
from probinterp.criticism.marginals import cumulative, marginals

ROWS, COLUMNS = 0, 1


class Whole:
    """All the data, with what the likelihood says of them, computed when first asked for.

    Parameters
    ----------
    x
        Data, shape (N, G).
    draw
        The draw that scores them.
    """

    def __init__(self, x: Tensor, draw: PredictiveDraw) -> None:
        self.x, self.draw = x, draw

    @cached_property
    def likelihood(self) -> Distribution:
        """Distribution of the data."""
        return self.draw.likelihood(self.x)

    @cached_property
    def log_prob(self) -> Tensor:
        """Log density of every unit, (N,)."""
        return self.likelihood.log_prob(self.x)

    @cached_property
    def mean(self) -> Tensor:
        """Mean of every entry, (N, G)."""
        return self.likelihood.mean

    @cached_property
    def variance(self) -> Tensor:
        """Variance of every entry, (N, G)."""
        return self.likelihood.variance

    @cached_property
    def marginals(self) -> Distribution:
        """One distribution per entry."""
        return marginals(self.likelihood)

    @cached_property
    def marginal_log_prob(self) -> Tensor:
        """Log density of every entry, (N, G)."""
        return self.marginals.log_prob(self.x)

    @cached_property
    def marginal_cdf(self) -> Tensor:
        """Distribution function at every entry, (N, G)."""
        return cumulative(self.marginals, self.x)


class Part:
    """A draw for some rows or columns of the data.

    Its likelihood infers z from the whole data, in which the part has been put in place.

    Parameters
    ----------
    whole
        The data and their draw.
    index
        Which rows or columns, an integer tensor.
    dim
        ``ROWS`` or ``COLUMNS``.
    """

    def __init__(self, whole: Whole, index: Tensor, dim: int) -> None:
        self.whole, self.index, self.dim = whole, index, dim
        self.x = self.take(whole.x)

    def take(self, entries: Tensor) -> Tensor:
        """The part of a tensor of shape (N, G)."""
        return entries.index_select(self.dim, self.index)

    def put(self, part: Tensor) -> Tensor:
        """The data, with ``part`` in place of this part."""
        return self.whole.x.index_copy(self.dim, self.index, part)

    def replicate(self) -> Tensor:
        """Entries of this part in new data."""
        return self.take(self.whole.draw.replicate())

    def likelihood(self, x: Tensor) -> Distribution:
        """Distribution of this part, z inferred from the data with ``x`` in its place."""
        if x is self.x:
            return PartLikelihood(self)
        return PartLikelihood(Part(Whole(self.put(x), self.whole.draw), self.index, self.dim))


class PartLikelihood(Distribution):
    """What the likelihood of the whole says about a part.

    Rows are scored jointly over their features, columns by the marginals of their entries.

    Parameters
    ----------
    part
        The part.
    """

    arg_constraints: dict[str, Any] = {}

    def __init__(self, part: Part) -> None:
        self._part = part
        batch, event = part.x.shape[:1], part.x.shape[1:]
        super().__init__(batch, event, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Mean of every entry of the part."""
        return self._part.take(self._part.whole.mean)

    @property
    def variance(self) -> Tensor:
        """Variance of every entry of the part."""
        return self._part.take(self._part.whole.variance)

    def marginals(self) -> Distribution:
        """One distribution per entry of the part."""
        return _PartMarginals(self._part)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of the rows of the part."""
        part = self._part
        if part.dim == COLUMNS:
            return self.marginals().log_prob(value).sum(1)
        if value is part.x:
            return part.whole.log_prob.index_select(0, part.index)
        return part.whole.likelihood.log_prob(part.put(value)).index_select(0, part.index)


class _PartMarginals(Distribution):
    arg_constraints: dict[str, Any] = {}

    def __init__(self, part: Part) -> None:
        self._part = part
        super().__init__(part.x.shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self._part.whole.marginals.support

    def log_prob(self, value: Tensor) -> Tensor:
        part = self._part
        if value is part.x:
            return part.take(part.whole.marginal_log_prob)
        return part.take(part.whole.marginals.log_prob(part.put(value)))

    def cdf(self, value: Tensor) -> Tensor:
        part = self._part
        if value is part.x:
            return part.take(part.whole.marginal_cdf)
        return part.take(cumulative(part.whole.marginals, part.put(value)))
