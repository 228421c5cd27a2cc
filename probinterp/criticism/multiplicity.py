"""Many p-values at once: false discovery rate and family-wise error."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Method = Literal["bh", "holm"]


def adjust(p: Tensor, method: Method = "bh") -> Tensor:
    r"""Adjusted p-values: reject where they are at most the level.

    .. math:: \tilde p_{(i)} = \min_{j \ge i} \min\Big(1, \frac{m\, p_{(j)}}{j}\Big)
        \text{ (bh)}, \qquad
        \tilde p_{(i)} = \max_{j \le i} \min\big(1, (m - j + 1)\, p_{(j)}\big) \text{ (holm)}

    Parameters
    ----------
    p
        p-values, shape (m,) or ().
    method
        ``"bh"``: Benjamini and Hochberg; the expected share of false rejections is at most the
        level for independent or positively dependent p-values. ``"holm"``: Holm; the probability
        of any false rejection is at most the level under any dependence.

    Returns
    -------
    Tensor
        Float64, shape of ``p``; a single p-value stays as it is.

    Raises
    ------
    ValueError
        If the method is unknown, the shape is wrong or a p-value lies outside [0, 1].

    References
    ----------
    Controlling the false discovery rate (Benjamini and Hochberg, 1995); A simple sequentially
    rejective multiple test procedure (Holm, 1979).
    """
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}.")
    if p.ndim > 1:
        raise ValueError(f"p must be a vector or a number, got shape {tuple(p.shape)}.")
    p = p.double()
    if not bool(((p >= 0) & (p <= 1)).all()):
        raise ValueError("p-values must lie in [0, 1].")
    if p.ndim == 0:
        return p
    if method == "bh":
        from scipy.stats import false_discovery_control  # slow to import, seldom needed

        return torch.as_tensor(false_discovery_control(p.cpu().numpy()))
    increasing, order = p.sort(stable=True)
    remaining = torch.arange(len(p), 0, -1, dtype=torch.float64)
    adjusted = (increasing * remaining).cummax(0).values.clamp(max=1)
    return torch.empty_like(p).scatter_(0, order, adjusted)
