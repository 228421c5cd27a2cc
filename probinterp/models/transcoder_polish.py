"""Closed-form optima of some parameters of a transcoder with random codes, given the others."""

from __future__ import annotations

import torch
from torch import Tensor

from probinterp.models.activation_priors.bernoulli_gaussian import BernoulliGaussian
from probinterp.models.activation_priors.spike_slab import SpikeSlabPrior
from probinterp.models.base import ActivationBatch
from probinterp.models.transcoder import CrossLayerTranscoder
from probinterp.triangular_decoding import prefix_decode


@torch.no_grad()
def fit_noise_scales(model: CrossLayerTranscoder, batch: ActivationBatch) -> None:
    r"""Set the scales of normal noise to their optimum, the expected squared error.

    .. math:: \sigma_l^2 = \frac{1}{N D} \sum_n R_{nl}, \quad
        R_{nl} = E \lVert y_n^l - b^l - \textstyle\sum_i z_{ni} W_i^{\to l} \rVert^2
    """
    moments = _codes(model).moments(model.encoder(batch.inputs))
    error = (batch.x - model.decode(moments.mean, batch.inputs)) * model.outputs.scale
    assert moments.variance is not None
    squares = [weight.square() for weight in model.decoders.by_target()]
    spread = prefix_decode(moments.variance, squares)
    model.noise.fit_residuals((error.square() + spread).mean(0))


@torch.no_grad()
def fit_slab_scales(model: CrossLayerTranscoder, batch: ActivationBatch) -> None:
    r"""Bring the codes to the scale of their prior.

    The best scale of the prior slab is
    :math:`\tau_i^2 = \sum_n \pi_{ni} E[z_{ni}^2 \mid \text{on}] / \sum_n \pi_{ni}`. As the
    scale of the prior is one, codes are divided by :math:`\tau` and decoders multiplied by it,
    which leaves all outputs as they are.
    """
    activation, encoder = _codes(model), model.encoder
    tau = best_slab_scale(activation, encoder(batch.inputs))
    encoder.weight.div_(tau.unsqueeze(2))
    encoder.bias.div_(tau)
    activation.gate_slope.mul_(tau)
    activation.log_scale.sub_(tau.log())
    for source, target in model.decoders.pairs():
        model.decoders.block(source, target).mul_(tau[source].unsqueeze(1))


def best_slab_scale(activation: SpikeSlabPrior, pre: Tensor) -> Tensor:
    r"""Best scale :math:`\tau` of the prior slab of each latent, (L, H); one where none fires."""
    law = activation.posterior_by_code(pre)
    on = law.inclusion.sum(0)
    second = law.slab.variance + law.slab.mean.square()
    tau = ((law.inclusion * second).sum(0) / on).sqrt()
    return torch.where((on > 0) & (tau > 0), tau, 1.0)


@torch.no_grad()
def fit_posterior_scales(model: CrossLayerTranscoder) -> None:
    r"""Set the scales of the posterior slabs of signed codes to their optimum.

    .. math:: s_i^{-2} = 1 + \sum_j \lVert W_i^{\to j} \rVert^2 / \sigma_j^2

    For the end of training: earlier, while decoders are short, it keeps latents at their prior.

    Raises
    ------
    TypeError
        If the codes are not those of :class:`BernoulliGaussian`.
    """
    activation = model.activation
    if not isinstance(activation, BernoulliGaussian):
        raise TypeError(f"BernoulliGaussian codes expected, got {type(activation).__name__}.")
    precision = model.noise.variance.reciprocal()
    activation.log_scale.copy_(-0.5 * (1 + model.decoders.squared_norm(precision)).log())


def _codes(model: CrossLayerTranscoder) -> SpikeSlabPrior:
    if not isinstance(model.activation, SpikeSlabPrior):
        raise TypeError(
            "BernoulliGaussian or BernoulliTruncatedNormal codes expected, got "
            f"{type(model.activation).__name__}."
        )
    return model.activation
