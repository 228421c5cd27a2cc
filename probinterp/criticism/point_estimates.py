"""Correction in closed form of a likelihood check whose globals are point estimates."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from probinterp.criticism.result import PopPCResult


def analytic_z(result: PopPCResult, dim: float) -> Tensor:
    r"""Effect size of a likelihood check, corrected for globals estimated by maximum likelihood.

    .. math:: z' = \Big(z - \frac{\mathrm{dim}}{n_{obs}} \sqrt{\frac{2 n_{new}}{G}}\Big)
        \Big/ \sqrt{1 + \frac{n_{new}}{n_{obs}}}

    The subtracted term is the optimism of the fit, twice :math:`\mathrm{dim} / 2 n_{obs}` in the
    discrepancy; the divisor makes up for the uncertainty of the estimate, which replicates from a
    single estimate lack. Under a correct model z' is about standard normal.

    Parameters
    ----------
    result
        Check of new rows by ``mean_negative_log_likelihood`` with the local latents integrated
        out, replicates drawn from the estimate alone; ``n_obs`` must be known.
    dim
        Number of free parameters of the fit, after rotations and other redundancies; an upper
        bound for penalised fits.

    Returns
    -------
    Tensor
        z', shape of ``result.z``.

    Raises
    ------
    ValueError
        If ``n_obs`` is not known, the check is not a held-out one, or ``dim`` is negative.

    Notes
    -----
    The spread of the discrepancy is taken to be :math:`\sqrt{G / 2 n_{new}}`, that of Gaussian
    rows. For other discrepancies and likelihoods the correction is wrong; refits are not.

    References
    ----------
    Asymptotic Statistics (van der Vaart, 1998), chapters 5 and 16, for the expansion of the log
    likelihood at its maximiser.
    """
    if result.check != "pop-pc":
        raise ValueError(f"the correction is for held-out checks, got check={result.check!r}.")
    if result.n_obs is None:
        raise ValueError("the correction needs n_obs, the number of units of the fit; got None.")
    if dim < 0:
        raise ValueError(f"dim must be the number of free parameters, got {dim}.")
    bias = dim / result.n_obs * math.sqrt(2 * result.n_new / result.n_features)
    return (result.z - bias) / math.sqrt(1 + result.n_new / result.n_obs)


def analytic_p(result: PopPCResult, dim: float) -> Tensor:
    r"""Two-sided p-value of :func:`analytic_z`, :math:`2 \Phi(-|z'|)`.

    Parameters
    ----------
    result, dim
        As for :func:`analytic_z`.

    Returns
    -------
    Tensor
        Shape of ``result.z``.

    Raises
    ------
    ValueError
        As :func:`analytic_z`.
    """
    return 2 * torch.special.ndtr(-analytic_z(result, dim).abs())
