r"""What to compare for the proxy of a network: errors, tails, calibration, directions.

Functions of activations :math:`y` (N, L, D) and a draw that predicts them, with a value for every
layer by token type; below, sums run over the tokens t of one cell and over channels c, and
:math:`\hat y`, v are mean and variance of the draw's likelihood,
:math:`r = y - \hat y, e = r / \sqrt v`. What depends on neighbours or on other layers is in
:mod:`probinterp.criticism.discrepancies.proxy_dependence`.
"""

from __future__ import annotations

from statistics import NormalDist

import torch
from torch import Tensor

from probinterp.criticism.discrepancies.moments import require_probability
from probinterp.criticism.discrepancies.token_cells import CellDiscrepancy, row_quantile
from probinterp.criticism.token_layout import TokenLayout
from probinterp.criticism.token_residuals import TokenResiduals

N_BINS = 50


class ReconstructionError(CellDiscrepancy):
    r"""Realised normalised mean squared error: catches a wrong scale of the residuals.

    .. math:: d = \frac{\sum_t \lVert r_t \rVert^2}{\sum_t \lVert y_t - \bar y \rVert^2}

    with :math:`\bar y` the mean over all tokens of the cell, also for the value of one image. 0
    for an exact prediction, infinite for tokens without spread that are not predicted exactly.

    Parameters
    ----------
    layout
        How the tokens make up images.
    """

    def __init__(self, layout: TokenLayout) -> None:
        super().__init__(layout, "nmse")

    def summarise(self, tokens: TokenResiduals) -> Tensor:
        """Squared error, number of tokens, sum of squares and sum, from which both follow."""
        error = _squares(tokens.residual)
        count = torch.full_like(error, tokens.x.shape[1])
        numbers = torch.stack([error, count, _squares(tokens.x)], -1)
        return torch.cat([numbers, tokens.x.sum(1, dtype=torch.float64)], -1)

    def pool(self, summary: Tensor) -> Tensor:
        """Errors over spreads of all images."""
        error, _, _, _ = _parts(summary.sum(0))
        return _ratio(error, _spread(summary, _mean(summary)).sum(0))

    def each(self, summary: Tensor) -> Tensor:
        """Error over spread of every image about the common mean."""
        return _ratio(summary[..., 0], _spread(summary, _mean(summary)))


class NormQuantile(CellDiscrepancy):
    r"""Quantile of the norms :math:`\lVert y_t \rVert`: catches massive activations, heavy tails.

    Parameters
    ----------
    layout
        How the tokens make up images.
    q
        Probability in [0, 1]; interpolated linearly between order statistics.
    """

    def __init__(self, layout: TokenLayout, q: float = 0.999) -> None:
        require_probability(q)
        super().__init__(layout, f"norm_quantile({q:g})")
        self.q = q

    def summarise(self, tokens: TokenResiduals) -> Tensor:
        """Norm of every token."""
        return torch.linalg.vector_norm(tokens.x, dim=-1).mT

    def pool(self, summary: Tensor) -> Tensor:
        """Quantile over the tokens of all images."""
        return row_quantile(summary.transpose(0, 1).flatten(1), self.q)

    def each(self, summary: Tensor) -> Tensor:
        """Quantile over the tokens of every image."""
        return row_quantile(summary, self.q)


class LargestChannel(CellDiscrepancy):
    r"""Largest entry :math:`\max_{tc} |y_{tc}|`: catches single massive channels.

    Parameters
    ----------
    layout
        How the tokens make up images.
    """

    def __init__(self, layout: TokenLayout) -> None:
        super().__init__(layout, "largest_channel")

    def summarise(self, tokens: TokenResiduals) -> Tensor:
        """Largest entry of every image."""
        return tokens.x.abs().amax((1, 3)).unsqueeze(-1)

    def pool(self, summary: Tensor) -> Tensor:
        """Largest of all."""
        return summary.amax(0).squeeze(-1)

    def each(self, summary: Tensor) -> Tensor:
        """Largest of every image."""
        return summary.squeeze(-1)


class ChiSquare(CellDiscrepancy):
    r"""Mean of the squared standardised residuals :math:`e^2`: over- and under-confidence.

    About 1 for a proxy whose predictive variance is right, above for an overconfident one.

    Parameters
    ----------
    layout
        How the tokens make up images.
    """

    def __init__(self, layout: TokenLayout) -> None:
        super().__init__(layout, "chi_square")

    def summarise(self, tokens: TokenResiduals) -> Tensor:
        """Mean of every image."""
        return tokens.standardised.square().mean((1, 3)).unsqueeze(-1)

    def pool(self, summary: Tensor) -> Tensor:
        """Mean over images, which have the same number of tokens."""
        return summary.mean(0).squeeze(-1)

    def each(self, summary: Tensor) -> Tensor:
        """Mean of every image."""
        return summary.squeeze(-1)


class PitDistance(CellDiscrepancy):
    r"""Kolmogorov distance of the normal probability integral transforms from uniformity.

    .. math:: d = \max_k \big| \tfrac1n \#\{tc: \Phi(e_{tc}) < \tfrac kK\} - \tfrac kK \big|

    On a grid of K bins, so that images need only be counted. Where the predictive law is not
    normal the transforms of the replicates deviate in the same way as those of the data.

    Parameters
    ----------
    layout
        How the tokens make up images.
    n_bins
        Number of bins, K, at least 2.
    """

    def __init__(self, layout: TokenLayout, n_bins: int = N_BINS) -> None:
        if n_bins < 2:
            raise ValueError(f"n_bins must be at least 2, got {n_bins}.")
        super().__init__(layout, "pit_distance")
        self.n_bins = n_bins

    def summarise(self, tokens: TokenResiduals) -> Tensor:
        """Number of transforms in every bin."""
        e = tokens.standardised.transpose(1, 2).flatten(2)  # (I, L, T D)
        bins = (torch.special.ndtr(e) * self.n_bins).long().clamp(max=self.n_bins - 1)
        counts = e.new_zeros(*e.shape[:2], self.n_bins)
        return counts.scatter_add_(2, bins, torch.ones_like(e))

    def pool(self, summary: Tensor) -> Tensor:
        """Distance over all images."""
        return self.each(summary.sum(0))

    def each(self, summary: Tensor) -> Tensor:
        """Distance for every image."""
        below = summary.cumsum(-1) / summary.sum(-1, keepdim=True)
        uniform = torch.arange(1, self.n_bins + 1, dtype=below.dtype, device=below.device)
        return (below - uniform / self.n_bins).abs().amax(-1)


class IntervalCoverage(CellDiscrepancy):
    r"""Share of entries in their central normal interval, :math:`|e| \le z_{(1 + a) / 2}`.

    Below the level for an overconfident proxy, above it for an underconfident one.

    Parameters
    ----------
    layout
        How the tokens make up images.
    level
        Probability a of the interval, in (0, 1).
    """

    def __init__(self, layout: TokenLayout, level: float = 0.9) -> None:
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {level}.")
        super().__init__(layout, f"interval_coverage({level:g})")
        self.bound = NormalDist().inv_cdf((1 + level) / 2)

    def summarise(self, tokens: TokenResiduals) -> Tensor:
        """Numbers of entries inside and of all, whole numbers so that ties stay ties."""
        inside = (tokens.standardised.abs() <= self.bound).sum((1, 3)).double()
        count = torch.full_like(inside, tokens.x.shape[1] * tokens.x.shape[3])
        return torch.stack([inside, count], -1)

    def pool(self, summary: Tensor) -> Tensor:
        """Share over all images."""
        return self.each(summary.sum(0))

    def each(self, summary: Tensor) -> Tensor:
        """Share of every image."""
        return summary[..., 0] / summary[..., 1]


class Cosine(CellDiscrepancy):
    r"""Mean or quantile of the cosines of activation and prediction: catches wrong directions.

    .. math:: \cos_t = \frac{\langle y_t, \hat y_t \rangle}
        {\lVert y_t \rVert \lVert \hat y_t \rVert}

    0 where one of the two is 0.

    Parameters
    ----------
    layout
        How the tokens make up images.
    q
        Probability of the quantile, None for the mean.
    """

    def __init__(self, layout: TokenLayout, q: float | None = None) -> None:
        if q is not None:
            require_probability(q)
        super().__init__(layout, "cosine" if q is None else f"cosine_quantile({q:g})")
        self.q = q

    def summarise(self, tokens: TokenResiduals) -> Tensor:
        """Cosine of every token."""
        x, mean = tokens.x, tokens.mean
        inner = (x * mean).sum(-1)
        norms = torch.linalg.vector_norm(x, dim=-1) * torch.linalg.vector_norm(mean, dim=-1)
        return torch.where(norms == 0, 0.0, inner / norms).mT

    def pool(self, summary: Tensor) -> Tensor:
        """Over the tokens of all images."""
        return self._of_row(summary.transpose(0, 1).flatten(1))

    def each(self, summary: Tensor) -> Tensor:
        """Over the tokens of every image."""
        return self._of_row(summary)

    def _of_row(self, values: Tensor) -> Tensor:
        return values.mean(-1) if self.q is None else row_quantile(values, self.q)


def _squares(values: Tensor) -> Tensor:
    """Sum of squares over tokens and channels, (I, L)."""
    # in double precision: a spread is the small difference of large sums
    return torch.linalg.vector_norm(values, dim=(1, 3), dtype=torch.float64).square()


def _parts(summary: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Squared error, number of tokens, sum of squares (...), and sum of the tokens (..., D)."""
    return summary[..., 0], summary[..., 1], summary[..., 2], summary[..., 3:]


def _mean(summary: Tensor) -> Tensor:
    """Mean activation over the tokens of all images, (L, D)."""
    _, count, _, total = _parts(summary.sum(0))
    return total / count.unsqueeze(-1)


def _spread(summary: Tensor, centre: Tensor) -> Tensor:
    """Sum of squared distances from ``centre`` (L, D) for every image, (I, L)."""
    _, count, squares, total = _parts(summary)
    around = squares - 2 * (total * centre).sum(-1) + count * centre.square().sum(-1)
    noise = 8 * torch.finfo(squares.dtype).eps * squares
    return torch.where(around <= noise, 0.0, around)


def _ratio(error: Tensor, spread: Tensor) -> Tensor:
    return torch.where(error == 0, 0.0, error / spread)
