"""How far logits move when something in a network is replaced."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import log_softmax


class LogitDrift(NamedTuple):
    """Change of the logits of each image.

    Attributes
    ----------
    kl
        Kullback-Leibler divergence of the class probabilities, in nats, (N,).
    largest
        Largest absolute change of a logit, (N,).
    """

    kl: Tensor
    largest: Tensor


def logit_drift(reference_logits: Tensor, logits: Tensor) -> LogitDrift:
    r"""Drift of each image's logits (..., C) from reference logits (..., C).

    .. math:: \sum_c p_c (\log p_c - \log p'_c), \qquad \max_c |\ell'_c - \ell_c|

    Parameters
    ----------
    reference_logits
        Logits :math:`\ell` of the network, (N, C).
    logits
        Logits :math:`\ell'` with the replacement, (N, C), or of several draws, (S, N, C).

    Returns
    -------
    LogitDrift
        Float64, (N,) or (S, N).

    Raises
    ------
    ValueError
        If images or classes differ in number.
    """
    if reference_logits.shape != logits.shape[-reference_logits.ndim :]:
        raise ValueError(
            f"logits {tuple(logits.shape)} are not of the same images and classes as the "
            f"reference {tuple(reference_logits.shape)}."
        )
    reference, changed = reference_logits.double(), logits.double()
    log_p, log_q = log_softmax(reference, -1), log_softmax(changed, -1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0)  # rounding may give -1e-17
    return LogitDrift(kl, (changed - reference).abs().amax(-1))
