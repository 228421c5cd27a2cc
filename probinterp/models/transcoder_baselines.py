"""Proxies without codes that every transcoder is to be compared with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from probinterp.models.base import ActivationBatch
from probinterp.models.transcoder_encoder import require_shape


class CodelessProxy(nn.Module, ABC):
    """A map of the inputs of every layer to its own outputs, with the surface of a transcoder.

    Codes have no latents, (N, L, 0), so that everything comes from the inputs.
    """

    cross_layer = False
    n_latents = 0

    def __init__(self, n_layers: int, width: int) -> None:
        super().__init__()
        self.n_layers, self.width = n_layers, width

    @abstractmethod
    def at_layer(self, inputs: Tensor, layer: int) -> Tensor:
        """Outputs (N, D) of one layer given its inputs (N, D)."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs (N, L, D) of inputs (N, L, D)."""
        require_shape("inputs", inputs, (self.n_layers, self.width))
        return torch.stack([self.at_layer(inputs[:, i], i) for i in range(self.n_layers)], 1)

    def encode(self, inputs: Tensor) -> Tensor:
        """No codes, (N, L, 0)."""
        return inputs[..., :0]

    def encode_layer(self, inputs: Tensor, layer: int) -> Tensor:
        """No codes, (N, 0)."""
        return inputs[..., :0]

    def decode_target(
        self, codes: Sequence[Tensor | None], target: int, inputs: Tensor | None = None
    ) -> Tensor:
        """Outputs (N, D) of one layer given its inputs (N, D); codes say nothing."""
        if inputs is None:
            raise ValueError(f"{type(self).__name__} needs the inputs of the layer, got None.")
        return self.at_layer(inputs, target)


class MeanProxy(CodelessProxy):
    """The mean output of every layer, whatever goes in: an R2 of zero.

    Parameters
    ----------
    mean
        Mean outputs, (L, D).
    """

    mean: Tensor

    def __init__(self, mean: Tensor) -> None:
        super().__init__(*mean.shape)
        self.register_buffer("mean", mean)

    @classmethod
    def fitted(cls, batches: Iterable[ActivationBatch]) -> MeanProxy:
        """The proxy whose means are those of the tokens of all batches."""
        total, n_tokens, dtype = torch.zeros(()), 0, torch.float32
        for batch in batches:
            total = batch.x.double().sum(0) + total.to(batch.x.device)
            n_tokens, dtype = n_tokens + len(batch.x), batch.x.dtype
        _require_tokens(n_tokens)
        return cls((total / n_tokens).to(dtype))

    def at_layer(self, inputs: Tensor, layer: int) -> Tensor:
        """Mean output of the layer for every token, (N, D)."""
        return self.mean[layer].expand(len(inputs), -1)


class RidgeProxy(CodelessProxy):
    r"""Linear regression of the outputs of every layer on its inputs: what no sparsity can do.

    .. math:: \hat y = \bar y + (x - \bar x) A, \quad
              A = (X^\top X / N + \lambda s I)^{-1} X^\top Y / N

    with centred X and Y and s the mean variance of the inputs of the layer.

    Parameters
    ----------
    weight
        A, (L, D, D).
    bias
        :math:`\bar y - \bar x A`, (L, D).
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__(*bias.shape)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    @classmethod
    def fitted(cls, batches: Iterable[ActivationBatch], penalty: float = 1e-4) -> RidgeProxy:
        r"""Fit in one pass over batches, in double precision.

        Parameters
        ----------
        batches
            Tokens, each once.
        penalty
            :math:`\lambda \ge 0` in units of the mean variance of an input channel.

        Raises
        ------
        ValueError
            If the penalty is negative or there is no token.
        """
        if not penalty >= 0:
            raise ValueError(f"penalty must not be negative, got {penalty}.")
        sums: list[Tensor] = []
        n_tokens, dtype = 0, torch.float32
        for batch in batches:
            x, y = batch.inputs.double().transpose(0, 1), batch.x.double().transpose(0, 1)
            found = [x.sum(1), y.sum(1), x.mT @ x, x.mT @ y]
            sums = [a + b for a, b in zip(sums, found, strict=True)] if sums else found
            n_tokens, dtype = n_tokens + len(batch.x), batch.x.dtype
        _require_tokens(n_tokens)
        mean_x, mean_y, gram, cross = (total / n_tokens for total in sums)
        gram = gram - mean_x.unsqueeze(2) * mean_x.unsqueeze(1)
        cross = cross - mean_x.unsqueeze(2) * mean_y.unsqueeze(1)
        spread = gram.diagonal(dim1=1, dim2=2).mean(1)
        identity = torch.eye(gram.shape[1]).to(gram)
        weight = torch.linalg.solve(gram + penalty * spread[:, None, None] * identity, cross)
        bias = mean_y - (mean_x.unsqueeze(1) @ weight).squeeze(1)
        return cls(weight.to(dtype), bias.to(dtype))

    def at_layer(self, inputs: Tensor, layer: int) -> Tensor:
        """Predicted outputs of the layer, (N, D)."""
        return torch.addmm(self.bias[layer], inputs, self.weight[layer])


class IdentityProxy(CodelessProxy):
    """The layers themselves: an R2 of one and no change of what the network says.

    Parameters
    ----------
    layers
        One module a layer that maps (N, D) to (N, D).
    width
        D.
    """

    def __init__(self, layers: Sequence[nn.Module], width: int) -> None:
        super().__init__(len(layers), width)
        self.layers = nn.ModuleList(layers)

    def at_layer(self, inputs: Tensor, layer: int) -> Tensor:
        """What the layer gives for the inputs, (N, D)."""
        outputs: Tensor = self.layers[layer](inputs)
        return outputs


def _require_tokens(n_tokens: int) -> None:
    if not n_tokens:
        raise ValueError("batches hold no token.")
