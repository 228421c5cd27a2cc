"""Priors that switch off what a latent writes to a layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from probinterp.models.annealing import require_share
from probinterp.models.base import require_positive
from probinterp.models.transcoder_decoder import DecoderPrior, TriangularDecoder

ROUNDING = 1e-9  # of a step of the ladder


class GroupSpikeSlabLasso(DecoderPrior):
    r"""Spike-and-slab lasso on the vector that a latent of one layer writes to another.

    .. math:: p(w) \propto \eta\, \lambda_1^D e^{-\lambda_1 \lVert w \rVert}
        + (1 - \eta)\, \lambda_0^D e^{-\lambda_0 \lVert w \rVert}

    The rates are given by the mean norms of slab and spike, :math:`\lambda = D / r`. The radius of
    the slab is the median over latents of their longest vector at ``begin``; until then the
    decoders are free. That of the spike falls from the slab's to ``r0`` times it in ``ladder``
    steps until ``end``. After every gradient step each vector is shortened by
    :math:`\kappa \lambda^*`, with :math:`\kappa` the learning rate over the number of tokens and

    .. math:: p^* = \mathrm{sigmoid}\Big(\log\tfrac{\eta}{1 - \eta}
        + D \log\tfrac{\lambda_1}{\lambda_0} + (\lambda_0 - \lambda_1) \lVert w \rVert\Big), \quad
        \lambda^* = \lambda_1 p^* + \lambda_0 (1 - p^*),

    and the share :math:`\eta` of each pair of layers becomes the mean of its :math:`p^*`. For many
    channels :math:`p^*` jumps from 0 to 1 at one norm, :attr:`GroupPrior.threshold`.

    Parameters
    ----------
    r0
        Radius of the spike in units of that of the slab, in (0, 1).
    learning_rate
        That of the optimiser, > 0.
    ladder
        Steps in which the spike narrows.
    begin, end
        Shares of the planned steps between which it does.

    References
    ----------
    The Spike-and-Slab LASSO (Ročková and George, 2018); Spike-and-Slab Group Lassos for Grouped
    Regression and Sparse Generalized Additive Models (Bai et al., 2022).
    """

    slab_radius: Tensor
    spike_share: Tensor
    eta: Tensor

    def __init__(
        self,
        r0: float = 0.05,
        *,
        learning_rate: float = 5e-4,
        ladder: int = 10,
        begin: float = 0.3,
        end: float = 0.8,
    ) -> None:
        super().__init__()
        require_positive(ladder=ladder)
        require_share(begin=begin, end=end)
        if not 0 < r0 < 1:
            raise ValueError(f"r0 must lie in (0, 1), got {r0}.")
        if not learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {learning_rate}.")
        if not begin < end:
            raise ValueError(f"begin < end expected, got {begin} and {end}.")
        self.r0, self.learning_rate = r0, learning_rate
        self.ladder, self.begin, self.end = ladder, begin, end

    def allocate(self, decoder: TriangularDecoder) -> None:
        """Make radii, (L,) by target, and shares, one a pair of layers."""
        self.register_buffer("slab_radius", torch.zeros(decoder.n_layers))
        self.register_buffer("spike_share", torch.ones(()))
        self.register_buffer("eta", torch.full((len(list(decoder.pairs())),), 0.5))

    def log_prob(self, decoder: TriangularDecoder) -> Tensor:
        """Zero: :meth:`update` does all."""
        return decoder.weights[0].new_zeros(())

    @torch.no_grad()
    def update(self, decoder: TriangularDecoder, n_total: int, progress: float) -> None:
        """Shorten every vector, then take the shares of all pairs of layers anew."""
        if progress < self.begin:
            return
        if not self.slab_radius.any():
            self.slab_radius.fill_(typical_length(decoder))
        rungs = (progress - self.begin) / (self.end - self.begin) * self.ladder
        self.spike_share.fill_(self.r0 ** min(1.0, math.ceil(rungs - ROUNDING) / self.ladder))
        kappa, n_latents = self.learning_rate / n_total, decoder.n_latents
        for i, (source, target) in enumerate(decoder.pairs()):
            block = decoder.block(source, target)
            norm = block.norm(dim=1)
            prior = self.group(i, target, decoder.width)
            keep = 1 - kappa * prior.slope(norm) / norm.clamp_min(torch.finfo(norm.dtype).tiny)
            block.mul_(keep.clamp_min(0.0).unsqueeze(1))
            share = prior.inclusion(norm).mean()
            self.eta[i] = share.clamp(0.5 / n_latents, 1 - 0.5 / n_latents)

    def group(self, pair: int, target: int, width: int) -> GroupPrior:
        """Prior of the vectors of one pair of layers."""
        slab = width / self.slab_radius[target]
        return GroupPrior(width, slab / self.spike_share, slab, self.eta[pair])

    @torch.no_grad()
    def inclusion(self, decoder: TriangularDecoder) -> Tensor:
        """Probability that latents of a source write to a target, (L, L, H); zero above."""
        n_layers = decoder.n_layers
        found = self.eta.new_zeros(n_layers, n_layers, decoder.n_latents)
        for i, (source, target) in enumerate(decoder.pairs()):
            norm = decoder.block(source, target).norm(dim=1)
            found[source, target] = self.group(i, target, decoder.width).inclusion(norm)
        return found

    def kept_blocks(self, decoder: TriangularDecoder) -> Tensor:
        """Whether a latent writes to a layer: [source, target, latent], (L, L, H) boolean."""
        return self.inclusion(decoder) > 0.5

    @torch.no_grad()
    def prune(self, decoder: TriangularDecoder) -> None:
        """Set to zero in place what is not kept."""
        kept = self.kept_blocks(decoder)
        for source, target in decoder.pairs():
            decoder.block(source, target).mul_(kept[source, target].unsqueeze(1))

    @torch.no_grad()
    def rescale(self, unit: Tensor) -> None:
        """Multiply the radii in place by ``unit``, (L, 1), as the decoders are."""
        self.slab_radius.mul_(unit.squeeze(1))


class GroupPrior:
    r"""Density of a vector of D channels by its norm, a mixture of a spike and a slab.

    Parameters
    ----------
    width
        D.
    spike, slab
        Rates :math:`\lambda_0` and :math:`\lambda_1`.
    eta
        Share :math:`\eta` of the slab.
    """

    def __init__(self, width: int, spike: Tensor, slab: Tensor, eta: Tensor) -> None:
        self.width, self.spike, self.slab, self.eta = width, spike, slab, eta

    def log_odds(self, norm: Tensor) -> Tensor:
        """Log odds of the slab; the power of D is never taken outside the logarithm."""
        prior = self.eta.logit() + self.width * (self.slab / self.spike).log()
        return prior + (self.spike - self.slab) * norm

    def inclusion(self, norm: Tensor) -> Tensor:
        """Probability of the slab."""
        return self.log_odds(norm).sigmoid()

    def slope(self, norm: Tensor) -> Tensor:
        r""":math:`\lambda^*`, minus the derivative of the log density by the norm."""
        included = self.inclusion(norm)
        return self.slab * included + self.spike * (1 - included)

    def log_density(self, norm: Tensor) -> Tensor:
        """Log density but for a constant of D alone."""
        slab = self.eta.log() + self.width * self.slab.log() - self.slab * norm
        return slab - logsigmoid(self.log_odds(norm))

    @property
    def threshold(self) -> Tensor:
        """Norm at which spike and slab are equally likely."""
        prior = self.eta.logit() + self.width * (self.slab / self.spike).log()
        return -prior / (self.spike - self.slab)


def typical_length(decoder: TriangularDecoder) -> Tensor:
    """Median over all latents of the norm of the longest vector that each writes, ()."""
    longest = decoder.weights[0].new_zeros(decoder.n_layers, decoder.n_latents)
    for source, target in decoder.pairs():
        norm = decoder.block(source, target).norm(dim=1)
        longest[source] = torch.maximum(longest[source], norm)
    return longest.median()
