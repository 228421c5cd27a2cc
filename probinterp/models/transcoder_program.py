"""Generative program, guide, bound and training of transcoders."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial

import pyro
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from torch import Tensor

from probinterp.models.activation_priors import ActivationPrior
from probinterp.models.annealing import require_share, warmup
from probinterp.models.base import OBS_SITE, ActivationBatch, ProbabilisticModel, observations
from probinterp.models.dead_latents import DeadLatents
from probinterp.models.transcoder_decoder import DecoderPrior, TriangularDecoder
from probinterp.models.transcoder_encoder import LayerwiseEncoder, require_shape, root_width_scale
from probinterp.models.transcoder_noise import SquaredErrorNoise, TokenNoise
from probinterp.models.transcoder_outputs import LayerOutputs
from probinterp.models.transcoder_steps import Encoded, ResidualSquares, Step, fired
from probinterp.triangular_decoding import SparseCodes, prefix_decode

BIAS_ROWS = 1024  # tokens that starting biases are found from


class TranscoderProgram(ProbabilisticModel):
    """Sparse codes of inputs, a linear decoder and noise, as a probabilistic program.

    Parameters
    ----------
    activation
        What the codes are.
    encoder, decoders, outputs
        Networks.
    noise
        Distribution of the outputs around their mean.
    decoder_prior
        Prior of the decoders, or None.
    analytic
        Whether the bound is taken in closed form where the activation has one.
    normalize
        Whether :meth:`initialize` estimates scales.
    kl_warmup
        Share of the planned steps over which the weight of the KL divergence grows from 0 to 1.
    auxiliary_weight
        Weight of the loss that revives dead latents.
    """

    conditional = True

    def __init__(
        self,
        activation: ActivationPrior,
        encoder: LayerwiseEncoder,
        decoders: TriangularDecoder,
        outputs: LayerOutputs,
        noise: TokenNoise,
        decoder_prior: DecoderPrior | None,
        *,
        analytic: bool,
        normalize: bool,
        kl_warmup: float,
        auxiliary_weight: float,
    ) -> None:
        super().__init__()
        require_share(kl_warmup=kl_warmup)
        if not auxiliary_weight >= 0:
            raise ValueError(f"auxiliary_weight must not be negative, got {auxiliary_weight}.")
        n_layers, n_latents, width = decoders.n_layers, decoders.n_latents, decoders.width
        self.activation, self.encoder, self.decoders = activation, encoder, decoders
        self.outputs, self.noise, self.squared_error = outputs, noise, SquaredErrorNoise()
        self.decoder_prior, self.analytic, self.normalize = decoder_prior, analytic, normalize
        self.kl_warmup, self.auxiliary_weight = kl_warmup, auxiliary_weight
        self.kl_weight = 1.0
        self.dead_latents = DeadLatents(n_layers, n_latents)
        self.residual_squares = ResidualSquares(n_layers, width)
        self._step: Step | None = None
        activation.allocate(n_layers, n_latents)
        for part in (self.noise, self.squared_error):
            part.allocate(n_layers, width)
        if decoder_prior is not None:
            decoder_prior.allocate(decoders)
        encoder.start(activation.start)
        decoders.start(activation.start)

    @abstractmethod
    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs (N, L, D) that the posterior-mean codes of inputs (N, L, D) predict."""

    def model(self, batch: ActivationBatch, n_total: int | None = None) -> None:
        """Codes from their prior, where they are latent, and outputs given the codes."""
        prior, unit = self.activation.prior(), self.outputs.unit
        if self.decoder_prior is not None:
            pyro.factor("decoders", self.decoder_prior.log_prob(self.decoders))
        with observations(batch, n_total):
            if prior is None:
                encoded = self._encoded(batch.inputs)
                mean = self._mean(encoded, batch.inputs)
            else:
                with poutine.scale(scale=self.kl_weight):
                    z = pyro.sample("z", prior)
                mean = self._decoded(z, batch.inputs)
            law = self._noise_in_use.distribution(mean * unit, unit)
            pyro.sample(OBS_SITE, law, obs=batch.x)
            if prior is None and self.training:
                residual = batch.x * self.outputs.scale - mean
                for name, loss in self._penalties(encoded, batch.inputs, residual).items():
                    pyro.factor(name, -loss)
                self._remember(encoded, residual, n_total)

    def guide(self, batch: ActivationBatch, n_total: int | None = None) -> None:
        """Codes given the inputs; nothing where they are points."""
        with observations(batch, n_total), poutine.scale(scale=self.kl_weight):
            if self.activation.is_point:
                return
            pre = self.encoder(batch.inputs)
            posterior = self.activation.posterior(pre)
            assert posterior is not None
            pyro.sample("z", posterior)
        if self.training:
            self._remember(Encoded(pre), None, n_total)

    def elbo(self, batch: ActivationBatch) -> dict[str, Tensor]:
        """Terms of the evidence lower bound by token, (B,) each, in nats.

        Returns
        -------
        dict
            ``x`` (expected log likelihood) and, where codes are random, minus ``kl_gate`` and
            ``kl_slab``; in training mode with the present weight of the KL divergence, and minus
            the penalties.

        Raises
        ------
        ValueError
            If the activation has no closed form.
        """
        if not self.activation.is_analytic:
            raise ValueError(f"{type(self.activation).__name__} has no closed form; sample it.")
        encoded = self._encoded(batch.inputs)
        residual = batch.x * self.outputs.scale - self._mean(encoded, batch.inputs)
        noise, moments = self._noise_in_use, encoded.moments
        quadratic = (residual.square() / noise.variance).sum(2)
        if moments is not None and moments.variance is not None:
            quadratic = quadratic + self._code_variance(moments.variance, noise.variance)
        density = noise.log_density(quadratic) + residual.shape[2] * self.outputs.scale.log().mT
        terms = {"x": density.sum(1)}
        for name in ("kl_gate", "kl_slab"):
            divergence = None if moments is None else getattr(moments, name)
            if divergence is not None:
                terms[name] = -self.kl_weight * divergence.sum(1)
        if self.training:
            penalties = self._penalties(encoded, batch.inputs, residual)
            terms |= {name: -loss for name, loss in penalties.items()}
            self._remember(encoded, residual, None)
        return terms

    def exact_elbo(
        self, batch: ActivationBatch, n_total: int | None = None
    ) -> dict[str, tuple[Tensor, bool]] | None:
        """Terms of :meth:`elbo`, summed and scaled, and ``decoders``; None if it is sampled."""
        if not (self.analytic and self.activation.is_analytic):
            return None
        n_total = n_total or len(batch.x)
        scale = n_total / len(batch.x)
        terms = {name: (scale * term.sum(), True) for name, term in self.elbo(batch).items()}
        if self._step is not None:
            self._step = self._step._replace(n_total=n_total)
        if self.decoder_prior is None:
            return terms
        return terms | {"decoders": (self.decoder_prior.log_prob(self.decoders), False)}

    def exact_marginal(
        self, batch: ActivationBatch, over: dict[str, TorchDistribution] | None = None
    ) -> TorchDistribution | None:
        """Distribution of the outputs given the inputs, where codes are points; else None."""
        if not self.activation.is_point:
            return None
        return self._noise_in_use.distribution(self.forward(batch.inputs), self.outputs.unit)

    @torch.no_grad()
    def initialize(self, batch: ActivationBatch, n_total: int) -> None:
        """Scales, output biases and encoder biases from a first batch of tokens."""
        require_shape("x", batch.x, self.outputs.bias.shape)
        if self.normalize:
            self.encoder.scale.copy_(root_width_scale(batch.inputs, "inputs"))
            self.outputs.scale.copy_(root_width_scale(batch.x, "x"))
        self.outputs.bias.copy_(batch.x.mean(0) * self.outputs.scale)
        self.encoder.bias.zero_()
        bias = self.activation.initial_bias(self.encoder(batch.inputs[:BIAS_ROWS]))
        if bias is not None:
            self.encoder.bias.copy_(bias)

    def anneal(self, progress: float) -> None:
        """Weight of the KL divergence and what the activation schedules."""
        self.kl_weight = warmup(progress, self.kl_warmup)
        self.activation.anneal(progress)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Count what fired, follow the residuals, update priors in closed form."""
        if self._step is None:
            return
        pre, active, n_total = self._step
        self._step = None
        self.dead_latents.count(active, len(pre), progress)
        if self.activation.is_point:
            self.noise.fit_residuals(self.residual_squares.mean_square)
        self.activation.update(pre, n_total, progress)
        if self.decoder_prior is not None:
            self.decoder_prior.update(self.decoders, n_total, progress)

    @property
    def _noise_in_use(self) -> TokenNoise:
        return self.squared_error if self.activation.is_point and self.training else self.noise

    def _encoded(self, inputs: Tensor) -> Encoded:
        pre = self.encoder(inputs)
        chosen = self.activation.select(pre) if self.decoders.layout == "source" else None
        if chosen is None:
            return Encoded(pre, self.activation.moments(pre))
        if not self.activation.is_point:
            moments = self.activation.moments(pre)
            return Encoded(pre, moments, SparseCodes(chosen, moments.mean.gather(2, chosen)))
        values = self.activation.selected(self._selected(inputs, pre, chosen))
        return Encoded(pre, sparse=SparseCodes(chosen, values))

    def _selected(self, inputs: Tensor, pre: Tensor, chosen: Tensor) -> Tensor:
        """Pre-activations (B, L, k) of the chosen latents; by rows their gradients are cheaper."""
        if self.decoders.layout != "source":
            return pre.gather(-1, chosen)
        return self.encoder.selected(inputs, pre, chosen)

    def _mean(self, encoded: Encoded, inputs: Tensor) -> Tensor:
        """Mean of the outputs in normalised units, (B, L, D)."""
        if encoded.sparse is None:
            assert encoded.moments is not None
            return self._decoded(encoded.moments.mean, inputs)
        decoded = self.decoders.decode_sparse(encoded.sparse)
        return self.outputs(decoded, self.encoder.scaled(inputs))

    def _decoded(self, z: Tensor, inputs: Tensor | None) -> Tensor:
        scaled = None if inputs is None else self.encoder.scaled(inputs)
        return self.outputs(self.decoders(z), scaled)

    def _code_variance(self, variance: Tensor, noise: Tensor) -> Tensor:
        """Standardised squared error that uncertain codes add on average, (B, L)."""
        norms = self.decoders.squared_norms(noise.reciprocal())
        return prefix_decode(variance, [norm.unsqueeze(1) for norm in norms]).squeeze(2)

    def _penalties(self, encoded: Encoded, inputs: Tensor, residual: Tensor) -> dict[str, Tensor]:
        """Losses by token, (B,), of training alone."""
        penalty = self.activation.penalty(encoded.pre, self._training_norm)
        found = {} if penalty is None else {"penalty": penalty}
        if self.auxiliary_weight:
            at = partial(self._selected, inputs, encoded.pre)
            loss = self.dead_latents.auxiliary_loss(
                self.activation, self.decoders, encoded.pre, at, residual
            )
            if loss is not None:
                found["dead_latents"] = (self.auxiliary_weight * loss).expand(len(residual))
        return found

    def _training_norm(self) -> Tensor:
        """Norm of all decoders of each latent in normalised units, (L, H)."""
        squares = self.decoders.squared_norm(torch.ones_like(self.outputs.scale))
        return squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()  # no slope at zero

    def _remember(self, encoded: Encoded, residual: Tensor | None, n_total: int | None) -> None:
        """Keep of a training step what the updates after it need."""
        pre = encoded.pre.detach()
        self._step = Step(pre, fired(encoded, self.activation), n_total or len(pre))
        if residual is not None and self.activation.is_point:
            self.residual_squares.add(residual.detach())
