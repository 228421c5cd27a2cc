"""Change of accuracy on the same images, with its tests and intervals."""

from __future__ import annotations

from typing import Any, NamedTuple

from probinterp.criticism.comparison import tango
from probinterp.criticism.comparison.cell_bootstrap import bca_interval
from probinterp.criticism.comparison.cells import Cells, Flags, count_cells
from probinterp.criticism.comparison.dirichlet import ChangePosterior, change_posterior
from probinterp.criticism.comparison.intervals import (
    Interval,
    agresti_min_interval,
    bonett_price_interval,
    wald_interval,
    wilson_interval,
)
from probinterp.criticism.comparison.mcnemar import mcnemar
from probinterp.criticism.comparison.quantity import ACCURACY, Quantity

INTERVALS = (
    "tango",
    "agresti_min",
    "bonett_price",
    "wald",
    "bca",
    "wilson_network",
    "wilson_proxy",
)


class PairedAccuracy(NamedTuple):
    """A network and its proxy on the same images.

    Parameters
    ----------
    cells
        Images by who recognises them; all else follows from these.
    p_midp, p_exact
        Two-sided p-values of McNemar's test. A large one is no evidence that accuracy is preserved;
        see :func:`noninferiority`.
    tango
        Interval of the change to be reported.
    agresti_min, bonett_price, wald, bca
        Other intervals of the change; that of Wald for reference only.
    wilson_network, wilson_proxy
        Intervals of the two accuracies.
    posterior
        Bayesian summary of the change.
    """

    cells: Cells
    p_midp: float
    p_exact: float
    tango: Interval
    agresti_min: Interval
    bonett_price: Interval
    wald: Interval
    bca: Interval
    wilson_network: Interval
    wilson_proxy: Interval
    posterior: ChangePosterior

    @property
    def n(self) -> int:
        """Number of images."""
        return self.cells.n

    @property
    def difference(self) -> float:
        """Accuracy of the proxy minus accuracy of the network, D."""
        return self.cells.difference

    @property
    def discordance(self) -> float:
        """Share of images on which the two differ, q."""
        return self.cells.discordance

    @property
    def accuracy_network(self) -> float:
        """Share of images that the network recognises."""
        return (self.cells.both + self.cells.network_only) / self.n

    @property
    def accuracy_proxy(self) -> float:
        """Share of images that the proxy recognises."""
        return (self.cells.both + self.cells.proxy_only) / self.n

    @property
    def spread(self) -> float:
        """Variance of one image's change, were there none on average: q."""
        return self.discordance

    @property
    def evidence(self) -> str:
        """What the comparison rests on."""
        n_discordant = self.cells.n_discordant
        if not n_discordant:
            return f"{self.n:,} images, none of them discordant"
        return f"{self.n:,} images, {n_discordant:,} of them discordant"

    @property
    def p_change(self) -> float:
        """Two-sided p-value of no change (mid-p)."""
        return self.p_midp

    @property
    def quantity(self) -> Quantity:
        """What changes, for sentences."""
        return ACCURACY

    def p_above(self, threshold: float) -> float:
        """One-sided p-value of a change of at most the threshold (Tango's score test)."""
        return tango.p_above(self.cells, threshold)

    def p_below(self, threshold: float) -> float:
        """One-sided p-value of a change of at least the threshold (Tango's score test)."""
        return tango.p_below(self.cells, threshold)

    def bounds(self, alpha: float) -> Interval:
        """Lower and upper bound of the change, each at one-sided level ``alpha``."""
        cells = self.cells
        return tango.tango_interval(cells.network_only, cells.proxy_only, cells.n, 1 - 2 * alpha)

    def numbers(self) -> dict[str, Any]:
        """Counts, changes, p-values and intervals as plain numbers, for a record or a table."""
        intervals = {
            name: list(value[:2]) for name, value in self._asdict().items() if name in INTERVALS
        }
        posterior = self.posterior._asdict() | {"interval": list(self.posterior.interval[:2])}
        return {
            "cells": self.cells._asdict(),
            "n": self.n,
            "accuracy_network": self.accuracy_network,
            "accuracy_proxy": self.accuracy_proxy,
            "difference": self.difference,
            "discordance": self.discordance,
            "p_midp": self.p_midp,
            "p_exact": self.p_exact,
            "level": self.tango.level,
            **intervals,
            "posterior": posterior,
        }


def paired_accuracy(
    correct_network: Flags,
    correct_proxy: Flags,
    *,
    level: float = 0.95,
    rope: float = 0.01,
    n_boot: int = 10_000,
    seed: int = 0,
) -> PairedAccuracy:
    """Compare which images a network and its proxy recognise.

    Parameters
    ----------
    correct_network, correct_proxy
        Whether each image is recognised, (N,) each, the same images in the same order.
    level
        Coverage of the intervals.
    rope
        Change that counts as none in the posterior summary.
    n_boot, seed
        Resampled tables of the bootstrap, and their seed.

    Raises
    ------
    ValueError
        If the two differ in length, are empty, or hold anything but true and false.

    Examples
    --------
    >>> found = paired_accuracy([1, 1, 1, 0, 0], [1, 1, 0, 1, 0])
    >>> found.cells, found.p_midp
    (Cells(both=2, network_only=1, proxy_only=1, neither=1), 0.75)
    """
    cells = count_cells(correct_network, correct_proxy)
    return accuracy_of_cells(cells, level=level, rope=rope, n_boot=n_boot, seed=seed)


def accuracy_of_cells(
    cells: Cells,
    *,
    level: float = 0.95,
    rope: float = 0.01,
    n_boot: int = 10_000,
    seed: int = 0,
) -> PairedAccuracy:
    """The same from the four counts, such as published ones."""
    cells = Cells(*cells).checked()
    lost, gained, n = cells.network_only, cells.proxy_only, cells.n
    return PairedAccuracy(
        cells=cells,
        p_midp=mcnemar(lost, gained),
        p_exact=mcnemar(lost, gained, "exact"),
        tango=tango.tango_interval(lost, gained, n, level),
        agresti_min=agresti_min_interval(cells, level),
        bonett_price=bonett_price_interval(cells, level),
        wald=wald_interval(cells, level),
        bca=bca_interval(cells, level, n_boot=n_boot, seed=seed),
        wilson_network=wilson_interval(cells.both + lost, n, level),
        wilson_proxy=wilson_interval(cells.both + gained, n, level),
        posterior=change_posterior(cells, rope, level=level),
    )
