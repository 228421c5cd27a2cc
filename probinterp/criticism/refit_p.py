"""Ranks with ties broken, and p-values from few refits."""

from __future__ import annotations

import torch
from torch import Tensor


def rank_two_sided(above: Tensor, tied: Tensor, uniform: Tensor, n: int) -> Tensor:
    """Two-sided p-value of a value with ``above`` larger and ``tied`` equal ones among ``n``.

    The value itself is counted, so that Pr(p <= a) <= a for exchangeable values.
    """
    upper = above + uniform * tied + 1
    lower = n + 2 - upper
    return (2 * torch.minimum(upper, lower) / (n + 1)).clamp(max=1)


def refit_rank_p(refitted: Tensor, excess: Tensor, uniform: Tensor) -> Tensor:
    """Two-sided rank of the excess (...) among those of the refits (B, ...)."""
    above = (refitted > excess).sum(0).double()
    tied = (refitted == excess).sum(0).double()
    return rank_two_sided(above, tied, uniform, len(refitted))


def refit_t_p(refitted: Tensor, excess: Tensor, uniform: Tensor) -> Tensor:
    """Two-sided p-value of the excess under a normal law whose moments the refits estimate.

    Where the refits do not vary, as for a rare event that none of them had, they say nothing of
    the law, and the rank decides.
    """
    from scipy.stats import t as student  # slow to import, seldom needed

    n = len(refitted)
    centre, spread = refitted.mean(0), refitted.std(0)
    varied = (spread > 0) & spread.isfinite()
    scale = torch.where(varied, spread, 1.0) * (1 + 1 / n) ** 0.5
    p = torch.as_tensor(2 * student.sf(((excess - centre) / scale).abs().numpy(), n - 1))
    return torch.where(varied, p, refit_rank_p(refitted, excess, uniform))
