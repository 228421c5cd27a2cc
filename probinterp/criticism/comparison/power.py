"""Margins and changes that a number of images can test."""

from __future__ import annotations

import math
from typing import Literal, get_args

from scipy.special import ndtr, ndtri

Kind = Literal["noninferiority", "tost"]


def power(
    n: int,
    discordance: float,
    margin: float,
    kind: Kind = "tost",
    *,
    alpha: float = 0.05,
    difference: float = 0.0,
) -> float:
    r"""Probability that preservation is shown, to a normal approximation.

    .. math:: \text{non-inferiority: } \Phi\Big(\frac{\delta + D}{se} - z_{1-\alpha}\Big), \quad
        \text{TOST: } \Phi\Big(\frac{\delta + D}{se} - z_{1-\alpha}\Big) +
        \Phi\Big(\frac{\delta - D}{se} - z_{1-\alpha}\Big) - 1, \quad
        se = \sqrt{(q - D^2) / n}

    Parameters
    ----------
    n
        Number of images.
    discordance
        Share q of images on which network and proxy differ.
    margin
        Margin as a fraction: 0.01 is one percentage point.
    kind
        ``"noninferiority"`` (no loss beyond the margin) or ``"tost"`` (no change beyond it).
    alpha
        One-sided level.
    difference
        True change of accuracy D.

    References
    ----------
    A comparison of the two one-sided tests procedure and the power approach for assessing the
    equivalence of average bioavailability (Schuirmann, 1987).
    """
    _validate(n, discordance, kind, alpha)
    _share(margin, "margin")
    if abs(difference) > discordance:
        raise ValueError(
            f"a change of {difference:g} needs a discordance of at least that, got {discordance:g}."
        )
    z = ndtri(1 - alpha)
    error = math.sqrt((discordance - difference**2) / n)
    if error == 0:  # all images change the same way
        return float(abs(difference) < margin or (kind != "tost" and difference > 0))
    lower = float(ndtr((margin + difference) / error - z))
    if kind == "noninferiority":
        return lower
    return max(0.0, lower + float(ndtr((margin - difference) / error - z)) - 1)


def minimal_margin(
    n: int,
    discordance: float,
    power: float = 0.8,
    kind: Kind = "noninferiority",
    *,
    alpha: float = 0.05,
) -> float:
    r"""Smallest margin that unchanged accuracy passes with this power.

    .. math:: \delta_{min} = (z_{1-\alpha} + z_{1-\beta}) \sqrt{q / n}

    for non-inferiority, with :math:`z_{1-\beta/2}` in place of :math:`z_{1-\beta}` for TOST.
    """
    _validate(n, discordance, kind, alpha)
    return margin_factor(power, kind, alpha) * math.sqrt(discordance / n)


def required_images(
    discordance: float,
    margin: float,
    power: float = 0.8,
    kind: Kind = "noninferiority",
    *,
    alpha: float = 0.05,
) -> int:
    """Images at which unchanged accuracy passes the margin with this power."""
    _validate(1, discordance, kind, alpha)
    _share(margin, "margin")
    return math.ceil(margin_factor(power, kind, alpha) ** 2 * discordance / margin**2)


def minimal_detectable_difference(
    n: int, discordance: float, power: float = 0.8, *, alpha: float = 0.05
) -> float:
    r"""Change that McNemar's test finds with this power, approximately.

    .. math:: (z_{1-\alpha/2} + z_{1-\beta}) \sqrt{q / n}
    """
    _validate(n, discordance, "tost", alpha)
    _share(power, "power")
    return float(ndtri(1 - alpha / 2) + ndtri(power)) * math.sqrt(discordance / n)


def margin_factor(power: float, kind: Kind, alpha: float) -> float:
    """Margin in standard errors that unchanged accuracy passes with this power."""
    _share(power, "power")
    return float(ndtri(1 - alpha) + ndtri((1 + power) / 2 if kind == "tost" else power))


def _validate(n: int, discordance: float, kind: Kind, alpha: float) -> None:
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}.")
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}.")
    if not 0 <= discordance <= 1:
        raise ValueError(f"discordance must lie in [0, 1], got {discordance}.")
    _share(alpha, "alpha")


def _share(value: float, name: str) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie between 0 and 1, got {value}.")
