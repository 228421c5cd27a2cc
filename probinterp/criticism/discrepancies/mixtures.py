"""Discrepancies for mixtures and for tables of categories."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import MixtureSameFamily

from probinterp.criticism.draws import PredictiveDraw


def mean_negative_complete_log_likelihood(x: Tensor, draw: PredictiveDraw) -> Tensor:
    r"""Mean negative log density of units and labels together, labels averaged out.

    .. math:: d(x, \theta) = -\frac1N \sum_{ik} r_{ik}
        \big(\log \pi_k + \log p(x_i \mid \theta_k)\big), \qquad
        r_{ik} = p(c_i = k \mid x_i, \theta)

    It is the mean negative log likelihood plus the mean entropy of the labels: unlike the
    likelihood it also asks whether components are separated. Use it as a plug-in from an
    independent fit.

    Parameters
    ----------
    x
        Data, shape (N, G).
    draw
        Its likelihood is a ``MixtureSameFamily``.

    Returns
    -------
    Tensor
        Scalar; any real number, large means bad fit; no ties unless the data are discrete.

    Raises
    ------
    TypeError
        If the likelihood is not a mixture.

    References
    ----------
    The Posterior Predictive Null (Moran, Cunningham and Blei, 2022), the Gaussian mixture.
    """
    mixture = draw.likelihood(x)
    if not isinstance(mixture, MixtureSameFamily):
        raise TypeError(
            "mean_negative_complete_log_likelihood needs a MixtureSameFamily likelihood, "
            f"got {type(mixture).__name__}."
        )
    log_joint = mixture.mixture_distribution.logits.log_softmax(-1)
    log_joint = log_joint + mixture.component_distribution.log_prob(x.unsqueeze(1))
    # softmax gives exactly 0 where the log density is -inf; 0 * inf would be NaN
    weighted = torch.where(log_joint.isneginf(), 0.0, log_joint.softmax(1) * log_joint)
    return -weighted.sum(1).mean()


def likelihood_ratio_statistic(x: Tensor, draw: PredictiveDraw) -> Tensor:
    r"""Deviance of a table of counts from the model's expected counts.

    .. math:: d(x, \theta) = 2 \sum_c y_c \log \frac{y_c}{E y_c}, \qquad
        E y_c = N\, p(c \mid \theta)

    with :math:`y_c` the number of units in cell c of the cross-classification of all features.

    Parameters
    ----------
    x
        Codes of categories, shape (N, G); the cells are its distinct rows.
    draw
        Its likelihood is the same for all units.

    Returns
    -------
    Tensor
        Scalar >= 0, large means bad fit; ties are possible.

    References
    ----------
    The Posterior Predictive Null (Moran, Cunningham and Blei, 2022), the multinomial mixture;
    Categorical Data Analysis (Agresti, 2013), section 3.2.
    """
    cells, counts = torch.unique(x, dim=0, return_counts=True)
    observed = counts.to(x.dtype)
    expected = len(x) * draw.likelihood(cells).log_prob(cells).exp()
    return 2 * (observed * (observed / expected).log()).sum()
