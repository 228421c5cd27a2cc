"""Change of accuracy class by class, shrunk towards the common change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from probinterp.criticism.comparison.cells import Flags, count_cells, flags
from probinterp.criticism.comparison.intervals import normal_quantile
from probinterp.criticism.comparison.mcnemar import mcnemar
from probinterp.criticism.multiplicity import adjust


class ClassEffects(NamedTuple):
    """Changes of accuracy by class; rows are classes.

    Parameters
    ----------
    labels
        Class of each row.
    n
        Images of the class, (C,).
    network_only, proxy_only
        Images of the class that only one of the two recognises, (C,).
    raw
        Change of accuracy, (C,). The largest of many is biased upwards.
    shrunken
        Posterior mean of the change, (C,).
    low, high
        Interval of the change around it, (C,) each; it does not know of the error of the
        common mean and spread.
    p_value
        Mid-p McNemar, (C,).
    q_value
        The same after Benjamini and Hochberg's correction, (C,).
    common_mean, common_sd
        Mean and standard deviation of the true changes over classes, estimated.
    """

    labels: tuple[Any, ...]
    n: Tensor
    network_only: Tensor
    proxy_only: Tensor
    raw: Tensor
    shrunken: Tensor
    low: Tensor
    high: Tensor
    p_value: Tensor
    q_value: Tensor
    common_mean: float
    common_sd: float

    def rows(self) -> list[dict[str, Any]]:
        """One row a class, the largest absolute shrunken change first."""
        order = self.shrunken.abs().argsort(descending=True, stable=True).tolist()
        names = [name for name in self._fields[1:] if isinstance(getattr(self, name), Tensor)]
        columns = {name: getattr(self, name).tolist() for name in names}
        return [
            {"class": self.labels[i], **{name: column[i] for name, column in columns.items()}}
            for i in order
        ]


def class_effects(
    correct_network: Flags,
    correct_proxy: Flags,
    labels: Any,
    *,
    names: Sequence[Any] | None = None,
    level: float = 0.95,
) -> ClassEffects:
    r"""Compare accuracies class by class.

    .. math:: D_g \mid \theta_g \sim N(\theta_g, s_g^2), \quad
        \theta_g \sim N(\mu, \tau^2), \quad s_g^2 = \frac{q_g - D_g^2}{n_g}

    with one half added to each cell of a class, and :math:`\mu, \tau` of largest marginal
    likelihood. The posterior of :math:`\theta_g` is normal with mean
    :math:`(D_g \tau^2 + \mu s_g^2) / (\tau^2 + s_g^2)` and variance
    :math:`\tau^2 s_g^2 / (\tau^2 + s_g^2)`.

    Parameters
    ----------
    correct_network, correct_proxy
        Whether each image is recognised, (N,) each.
    labels
        Class of each image, (N,).
    names
        Names of the classes 0, 1, ..., where ``labels`` are their numbers.
    level
        Mass of the intervals.

    Raises
    ------
    ValueError
        If lengths differ, or a label is no number of a name.

    References
    ----------
    Stein's estimation rule and its competitors: an empirical Bayes approach (Efron and Morris,
    1973); Controlling the false discovery rate (Benjamini and Hochberg, 1995).
    """
    count_cells(correct_network, correct_proxy)
    network, proxy = (
        flags(correct_network, "correct_network"),
        flags(correct_proxy, "correct_proxy"),
    )
    of_image = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
    if of_image.shape != network.shape:
        raise ValueError(f"labels must have shape {network.shape}, got {of_image.shape}.")
    known, place = np.unique(of_image, return_inverse=True)
    if names is not None and not (0 <= known[0] and known[-1] < len(names)):
        raise ValueError(
            f"labels must be 0 to {len(names) - 1} for {len(names)} names, got {known[0]} to "
            f"{known[-1]}."
        )
    n, lost, gained = (
        np.bincount(place, weights=w, minlength=len(known))
        for w in (np.ones(len(place)), network & ~proxy, proxy & ~network)
    )
    change = (gained - lost) / (n + 2)
    variance = ((gained + lost + 1) / (n + 2) - change**2) / (n + 2)
    mean, between = _common(change, variance)
    weight = between / (between + variance)
    shrunken = weight * change + (1 - weight) * mean
    half = normal_quantile(level) * np.sqrt(weight * variance)
    p = torch.tensor(
        [mcnemar(int(a), int(b)) for a, b in zip(lost, gained, strict=True)], dtype=torch.float64
    )
    return ClassEffects(
        labels=tuple(known.tolist() if names is None else (names[i] for i in known)),
        n=torch.from_numpy(n).long(),
        network_only=torch.from_numpy(lost).long(),
        proxy_only=torch.from_numpy(gained).long(),
        raw=torch.from_numpy((gained - lost) / n),
        shrunken=torch.from_numpy(shrunken),
        low=torch.from_numpy(shrunken - half),
        high=torch.from_numpy(shrunken + half),
        p_value=p,
        q_value=adjust(p, "bh"),
        common_mean=mean,
        common_sd=math.sqrt(between),
    )


def _common(change: np.ndarray, variance: np.ndarray) -> tuple[float, float]:
    """Mean and variance of the true changes with the largest marginal likelihood."""
    from scipy.optimize import minimize_scalar  # slow to import

    def mean_at(between: float) -> float:
        precision = 1 / (between + variance)
        return float((precision * change).sum() / precision.sum())

    def loss(between: float) -> float:
        total = between + variance
        return float((np.log(total) + (change - mean_at(between)) ** 2 / total).sum())

    top = float(np.var(change)) * 2 + 1e-12
    found = minimize_scalar(loss, bounds=(0.0, top), method="bounded", options={"xatol": 1e-12})
    between = float(found.x) if found.fun < loss(0.0) else 0.0
    return mean_at(between), between
