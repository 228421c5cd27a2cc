"""Cross-layer transcoder: a sparse proxy of all MLPs of a transformer at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from probinterp.configuration import construct
from probinterp.models.activation_priors import ActivationPrior
from probinterp.models.base import require_positive
from probinterp.models.transcoder_decoder import DecoderPrior, TriangularDecoder, layout_for
from probinterp.models.transcoder_encoder import LayerwiseEncoder, require_shape
from probinterp.models.transcoder_noise import LayerNoise, TokenNoise
from probinterp.models.transcoder_outputs import LayerOutputs
from probinterp.models.transcoder_posterior import CodePosterior, OutputPredictive, code_posterior
from probinterp.models.transcoder_program import TranscoderProgram
from probinterp.triangular_decoding import prefix_decode


class CrossLayerTranscoder(TranscoderProgram):
    r"""Sparse codes of every layer's input that write to the outputs of it and all later layers.

    .. math:: h^l = W_{enc}^l x^l + b_{enc}^l, \quad z^l \sim q(z^l \mid h^l), \quad
        y^j \mid z \sim N\Big(b^j + \sum_{i \le j} z^i W^{i \to j},\ \sigma_j^2 I\Big)

    x are the inputs of the MLPs of a transformer and y their outputs, token by token. An
    activation that keeps some pre-activations makes z a deterministic function of x; a
    spike-and-slab prior gives it a posterior that factorises over latents, and the evidence lower
    bound then has a closed form because the decoder is linear,

    .. math:: E_q \lVert y - b - zW \rVert^2 = \lVert y - b - E[z] W \rVert^2
              + \sum_i \mathrm{Var}(z_i) \lVert W_i \rVert^2 .

    Either way codes are inferred from x alone. Inputs and outputs are taken and given as they
    are; inside, those of every layer are scaled to a mean norm of :math:`\sqrt D`.

    Parameters
    ----------
    n_layers, width, n_latents
        L layers of width D with H latents each.
    activation
        What the codes are, an :class:`ActivationPrior`.
    cross_layer
        Whether latents write to later layers too; False for a transcoder of each layer by itself.
    skip
        Whether to add a linear map of the input of each layer to its own output.
    noise
        Distribution of the outputs around their mean: ``"layer"`` for one scale a layer, or a
        :class:`TokenNoise`.
    decoder_prior
        Prior of the decoders, or None.
    layout
        How decoders are laid out in memory, see :class:`TriangularDecoder`; ``"auto"`` takes the
        wide rows of ``"source"`` where less than one code in 64 is active.
    elbo
        ``"analytic"``: closed form where the activation has one. ``"meanfield"``: by Pyro, with a
        sampled likelihood and closed-form KL divergences where they are registered.
    normalize
        Whether scales are estimated by :meth:`initialize`; otherwise they stay at one.
    kl_warmup
        Share of the planned steps over which the weight of the KL divergence grows from 0 to 1.
    auxiliary_weight
        Weight of the loss that revives dead latents, for activations that keep the top k.
    metadata
        Where the activations come from: plain values that are saved with the model.

    Raises
    ------
    ValueError
        If a size is not positive or an option is unknown.

    Notes
    -----
    With point codes the training loss is the squared error in normalised units, that is, the
    likelihood at a variance of one half; the noise scales follow the training residuals in
    closed form and are used in evaluation mode. With uncertain codes they are the scales that
    maximise the bound, which makes predictions too wide. For a calibrated predictive
    distribution set them from residuals of data that trained nothing,
    :func:`probinterp.inference.calibrate_noise`.

    References
    ----------
    Circuit Tracing: Revealing Computational Graphs in Language Models (Ameisen et al., 2025),
    section 2. Can Cross-Layer Transcoders Replace Vision Transformer Activations? (Chatzoudis
    et al., 2026).
    """

    def __init__(
        self,
        n_layers: int,
        width: int,
        n_latents: int,
        *,
        activation: ActivationPrior,
        cross_layer: bool = True,
        skip: bool = False,
        noise: Literal["layer"] | TokenNoise = "layer",
        decoder_prior: DecoderPrior | None = None,
        layout: Literal["auto", "target", "source", "reference"] = "auto",
        elbo: Literal["analytic", "meanfield"] = "analytic",
        normalize: bool = True,
        kl_warmup: float = 0.3,
        auxiliary_weight: float = 1 / 32,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        require_positive(n_layers=n_layers, width=width, n_latents=n_latents)
        _require_options(activation, noise, elbo)
        packing = layout_for(layout, activation, n_latents)
        super().__init__(
            activation,
            LayerwiseEncoder(n_layers, width, n_latents),
            TriangularDecoder(n_layers, n_latents, width, cross_layer=cross_layer, layout=packing),
            LayerOutputs(n_layers, width, skip=skip),
            LayerNoise() if isinstance(noise, str) else noise,
            decoder_prior,
            analytic=elbo == "analytic",
            normalize=normalize,
            kl_warmup=kl_warmup,
            auxiliary_weight=auxiliary_weight,
        )
        self.n_layers, self.width, self.n_latents = n_layers, width, n_latents
        self.cross_layer, self._metadata = cross_layer, dict(metadata or {})

    @property
    def metadata(self) -> dict[str, Any]:
        """Where the activations come from: plain values that are saved with the model."""
        return self._metadata

    @metadata.setter
    def metadata(self, value: dict[str, Any]) -> None:
        self._metadata = dict(value)
        self.configuration["arguments"]["metadata"] = self._metadata

    def encode(self, inputs: Tensor) -> Tensor:
        """Posterior-mean codes (N, L, H) of inputs (N, L, D)."""
        return self.activation.moments(self.encoder(inputs)).mean

    def hard_codes(self, inputs: Tensor) -> Tensor:
        """The sparse codes (N, L, H) that stand for the posterior given inputs (N, L, D)."""
        return self.activation.hard(self.encoder(inputs))

    def encode_layer(self, inputs: Tensor, layer: int) -> Tensor:
        """Posterior-mean codes (N, H) of the inputs (N, D) of one layer."""
        return self._layer_codes(layer).moments(self._layer_pre(inputs, layer)).mean.squeeze(1)

    def posterior_codes(self, inputs: Tensor) -> CodePosterior:
        """Posterior of the codes given inputs (N, L, D)."""
        return code_posterior(self.activation, self.encoder(inputs))

    def posterior_codes_of(self, inputs: Tensor, layer: int) -> CodePosterior:
        """Posterior of the codes of one layer given its inputs (N, D); shapes are (N, H)."""
        pre = self._layer_pre(inputs, layer)
        return code_posterior(self._layer_codes(layer), pre).reshaped((len(pre), self.n_latents))

    def decode(self, z: Tensor, inputs: Tensor | None = None) -> Tensor:
        """Outputs (N, L, D) of codes (N, L, H); with a skip map given the inputs (N, L, D) too."""
        require_shape("z", z, (self.n_layers, self.n_latents))
        return self._decoded(z, inputs) * self.outputs.unit

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs (N, L, D) that the posterior-mean codes of inputs (N, L, D) predict."""
        return self._mean(self._encoded(inputs), inputs) * self.outputs.unit

    def decode_target(
        self, codes: Sequence[Tensor | None], target: int, inputs: Tensor | None = None
    ) -> Tensor:
        """Outputs (N, D) of one layer, bias and skip map included.

        Parameters
        ----------
        codes
            Codes (N, H) of the layers 0 to ``target``; None for a layer that is left out.
        target
            Layer that is written to.
        inputs
            Inputs of that layer, (N, D), for the skip map.

        Returns
        -------
        Tensor
            Shape (N, D); the bias alone, (D,), where every layer is left out and there is no skip
            map.
        """
        self._require_layer(target)
        if len(codes) <= target:
            raise ValueError(f"codes of layers 0 to {target} expected, got {len(codes)} layers.")
        total = None
        for source in range(0 if self.cross_layer else target, target + 1):
            z = codes[source]
            if z is not None:
                part = z @ self.decoders.block(source, target)
                total = part if total is None else total + part
        scaled = None if inputs is None else inputs * self.encoder.scale[target]
        return self.outputs.at_layer(total, scaled, target)

    def decoder(self, source: int, target: int) -> Tensor:
        """Decoder (H, D) of one layer for another, in the units of the outputs.

        A view of the parameters where outputs are not scaled, see :meth:`fold_normalization`.
        """
        block = self.decoders.block(source, target)
        return block * self.outputs.unit[target] if self.normalize else block

    @property
    def decoder_bias(self) -> Tensor:
        """Bias of every layer in the units of the outputs, (L, D)."""
        return self.outputs.bias * self.outputs.unit

    @property
    def decoder_norm(self) -> Tensor:
        """Norm of all decoders of each latent together, in the units of the outputs, (L, H)."""
        return self.decoders.squared_norm(self.outputs.unit.square()).sqrt()

    def fit_noise(self, mean_square: Tensor) -> None:
        """Set the noise scales.

        Parameters
        ----------
        mean_square
            Variance of each layer and channel that the noise shall have, in the units of the
            outputs, (L, D): of point codes their mean squared residual.
        """
        self.noise.fit_residuals(mean_square * self.outputs.scale.square())

    @torch.no_grad()
    def predictive(self, inputs: Tensor) -> OutputPredictive:
        """Distribution of the outputs given inputs (N, L, D), codes integrated out."""
        pre, unit = self.encoder(inputs), self.outputs.unit
        moments, law = self.activation.moments(pre), self.activation.posterior(pre)
        mean = self._decoded(moments.mean, inputs)
        variance = self.noise.distribution(mean * unit, unit).variance
        if moments.variance is not None:
            variance = variance + self._spread(moments.variance)

        def draw() -> Tensor:
            drawn = mean if law is None else self._decoded(law.sample(), inputs)
            return self.noise.distribution(drawn * unit, unit).sample()

        return OutputPredictive(mean * unit, variance, draw)

    @torch.no_grad()
    def code_variance(self, inputs: Tensor) -> Tensor | None:
        r"""Variance of the outputs that uncertain codes make, (N, L, D); None of point codes.

        .. math:: \sum_{i \le l} \mathrm{Var}(z^i)\, (W^{i \to l})^2
        """
        variance = self.activation.moments(self.encoder(inputs)).variance
        return None if variance is None else self._spread(variance)

    def _spread(self, variance: Tensor) -> Tensor:
        """Variance of the outputs, in their units, from that of the codes."""
        squares = [weight.square() for weight in self.decoders.by_target()]
        return prefix_decode(variance, squares) * self.outputs.unit.square()

    @torch.no_grad()
    def fold_normalization(self) -> CrossLayerTranscoder:
        """The same transcoder with the scales in its weights, for use on activations as they are.

        Returns
        -------
        CrossLayerTranscoder
            A new one with ``normalize=False``; its outputs are those of this one.
        """
        arguments = {**self.configuration["arguments"], "normalize": False}
        with torch.random.fork_rng(devices=[]):
            folded: CrossLayerTranscoder = construct({**self.configuration, "arguments": arguments})
        folded.load_state_dict(self.state_dict())
        folded.to(self.encoder.weight)
        unit = self.outputs.unit
        folded.encoder.fold()
        folded.outputs.fold(self.encoder.scale)
        folded.decoders.rescale(unit)
        folded.noise.rescale(unit)
        if folded.decoder_prior is not None:
            folded.decoder_prior.rescale(unit)
        folded.residual_squares.mean_square *= unit.square()
        return folded.eval()

    def _layer_codes(self, layer: int) -> ActivationPrior:
        self._require_layer(layer)
        return self.activation.at_layer(layer)

    def _layer_pre(self, inputs: Tensor, layer: int) -> Tensor:
        self._require_layer(layer)
        return self.encoder.at_layer(inputs, layer).unsqueeze(1)

    def _require_layer(self, layer: int) -> None:
        if not 0 <= layer < self.n_layers:
            raise ValueError(f"layer must be in 0..{self.n_layers - 1}, got {layer}.")


def _require_options(activation: ActivationPrior, noise: str | TokenNoise, elbo: str) -> None:
    if not isinstance(activation, ActivationPrior):
        raise TypeError(f"activation must be an ActivationPrior, got {type(activation).__name__}.")
    if not isinstance(noise, TokenNoise) and noise != "layer":
        raise ValueError(f'noise must be "layer" or a TokenNoise, got {noise!r}.')
    if elbo not in ("analytic", "meanfield"):
        raise ValueError(
            f'elbo must be "analytic" or "meanfield", got {elbo!r}; for another bound pass '
            "elbo= to fit."
        )
