"""What is compared, and how its changes are worded."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from probinterp.criticism.comparison.intervals import Interval


class Quantity(NamedTuple):
    """A quantity of which more is better.

    Parameters
    ----------
    name
        What it is called in a sentence.
    unit
        Unit in which changes are printed, with a leading space; may be empty.
    scale
        Factor from the numbers to that unit.
    test
        Name of the test of no change.
    """

    name: str
    unit: str
    scale: float
    test: str

    def signed(self, change: float) -> str:
        """A change with its sign: "-0.14 pp"."""
        return f"{_rounded(self.scale * change):+.4g}{self.unit}"

    def size(self, change: float) -> str:
        """A change without its sign: "0.14 pp"."""
        return f"{abs(_rounded(self.scale * change)):.4g}{self.unit}"


def _rounded(value: float) -> float:
    """Two decimals, or two digits of a small number; never minus zero."""
    return (round(value, 2) if abs(value) >= 0.1 else float(f"{value:.2g}")) + 0.0


ACCURACY = Quantity("accuracy", " pp", 100, "mid-p McNemar")


class Comparison(Protocol):
    """A paired comparison of a network and its proxy (or of two proxies)."""

    @property
    def n(self) -> int:
        """Number of independent units, which are images."""

    @property
    def difference(self) -> float:
        """Estimated change."""

    @property
    def spread(self) -> float:
        """Variance of one image's change, were there none on average."""

    @property
    def evidence(self) -> str:
        """What the comparison rests on: "5,000 images, 38 of them discordant"."""

    @property
    def p_change(self) -> float:
        """Two-sided p-value of no change."""

    @property
    def quantity(self) -> Quantity:
        """What changes."""

    def p_above(self, threshold: float) -> float:
        """One-sided p-value of a change of at most the threshold."""

    def p_below(self, threshold: float) -> float:
        """One-sided p-value of a change of at least the threshold."""

    def bounds(self, alpha: float) -> Interval:
        """Lower and upper bound of the change, each at one-sided level ``alpha``."""
