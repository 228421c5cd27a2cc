"""Transcoders and what to compare them with, fitted to recorded activations."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from functools import partial
from typing import Any

import torch
from torch import Tensor

from probinterp.inference import FitHistory, cosine, fit
from probinterp.models import (
    ActivationBatch,
    CrossLayerTranscoder,
    IdentityProxy,
    MeanProxy,
    RidgeProxy,
)
from probinterp.models.activation_priors import (
    AbsTopK,
    ActivationPrior,
    BernoulliGaussian,
    BernoulliTruncatedNormal,
    HardConcrete,
    JumpReLU,
    ReLUTopK,
)
from probinterp.vision import ActivationData, Tower

BATCH = 4096  # tokens a step of one pass over the data
LARGEST_GRADIENT = 10.0


class Activation(StrEnum):
    """What the codes of a transcoder are."""

    RELU_TOPK = "relu-topk"
    ABS_TOPK = "abs-topk"
    JUMP_RELU = "jump-relu"
    BERNOULLI_GAUSSIAN = "bernoulli-gaussian"
    TRUNCATED_NORMAL = "truncated-normal"
    HARD_CONCRETE = "hard-concrete"


def _top_k(kind: type[ReLUTopK] | type[AbsTopK], l0: float) -> ActivationPrior:
    if l0 != int(l0):
        raise ValueError(f"the number of active codes must be whole for top-k, got {l0:g}.")
    return kind(int(l0))


PRIORS: dict[Activation, Callable[..., ActivationPrior]] = {
    Activation.RELU_TOPK: partial(_top_k, ReLUTopK),
    Activation.ABS_TOPK: partial(_top_k, AbsTopK),
    Activation.JUMP_RELU: lambda l0, **options: JumpReLU(target_l0=l0, **options),
    Activation.BERNOULLI_GAUSSIAN: lambda l0: BernoulliGaussian(l0),
    Activation.TRUNCATED_NORMAL: lambda l0: BernoulliTruncatedNormal(l0),
    Activation.HARD_CONCRETE: lambda l0: HardConcrete(l0),
}


def make_transcoder(
    data: ActivationData,
    *,
    activation: str = "relu-topk",
    n_latents: int = 256,
    target_l0: float = 16,
    sparsity: float | None = None,
    per_layer: bool = False,
    skip: bool = False,
    seed: int = 0,
) -> CrossLayerTranscoder:
    """A transcoder for recorded activations, with random weights and the record of its tower.

    Parameters
    ----------
    data
        Activations of all layers of a tower.
    activation
        Name of an :class:`Activation`.
    n_latents
        Latents of each layer.
    target_l0
        Active codes a token and layer: k, or what a prior expects at the start.
    sparsity
        Weight of the sparsity loss of ``"jump-relu"``, which decides how many codes are active in
        the end; 1 by default.
    per_layer
        Latents write to their own layer alone.
    skip
        Add a linear map of the inputs of each layer.
    seed
        Seed of the weights.

    Raises
    ------
    ValueError
        If a layer was not recorded, the activation is unknown, or a size is impossible.
    """
    n_layers, width = len(data.layers), data.manifest["shape"][-1]
    recorded = data.manifest["backbone"]["n_layers"] if data.tower is None else data.tower.n_layers
    if data.layers != tuple(range(recorded)):
        raise ValueError(
            f"a transcoder needs all {recorded} layers, but {list(data.layers)} were recorded."
        )
    known = [a.value for a in Activation]
    if activation not in known:
        raise ValueError(f"activation must be one of {', '.join(known)}, got {activation!r}.")
    if not 0 < target_l0 < n_latents:
        raise ValueError(
            f"active codes must be more than 0 and fewer than the {n_latents} latents, got "
            f"{target_l0:g}."
        )
    kind = Activation(activation)
    if sparsity is not None and kind is not Activation.JUMP_RELU:
        raise ValueError(f"sparsity is a weight of jump-relu, got it for {activation}.")
    options = {} if sparsity is None else {"sparsity": sparsity}
    metadata = {"backbone": data.manifest["backbone"], "tokens": data.manifest["tokens"]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CrossLayerTranscoder(
            n_layers,
            width,
            n_latents,
            activation=PRIORS[kind](target_l0, **options),
            cross_layer=not per_layer,
            skip=skip,
            metadata=metadata,
        )


def fit_transcoder(
    clt: CrossLayerTranscoder,
    data: Any,
    *,
    epochs: int = 12,
    steps: int | None = None,
    batch_size: int = 512,
    learning_rate: float = 3e-3,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> FitHistory:
    """Fit a transcoder in place, with a learning rate that falls along a cosine.

    Parameters
    ----------
    clt
        What :func:`make_transcoder` gave.
    data
        Tokens to train on.
    epochs
        Passes over the tokens.
    steps
        Steps in all, instead of ``epochs``; rounded up to whole passes.
    batch_size, learning_rate, seed, device, progress
        As for :func:`probinterp.fit`.

    Raises
    ------
    ValueError
        If the learning rate is not positive.
    """
    if not learning_rate > 0:
        raise ValueError(f"learning_rate must be positive, got {learning_rate:g}.")
    if steps is not None:
        epochs = max(1, -(-steps * batch_size // len(data)))
    return fit(
        clt,
        data,
        max_epochs=epochs,
        batch_size=min(batch_size, len(data)),
        optimizer=partial(torch.optim.Adam, lr=learning_rate),
        schedule=cosine,
        max_grad_norm=LARGEST_GRADIENT,
        seed=seed,
        device=device,
        progress=progress,
    )


class ExchangedOutputs:
    """The same tokens with the outputs of others: what a proxy learns that saw wrong pairs.

    Parameters
    ----------
    data
        Recorded activations.
    seed
        Seed of the exchange, which is made anew in every minibatch.
    """

    def __init__(self, data: ActivationData, seed: int = 0) -> None:
        self.data, self.generator = data, torch.Generator().manual_seed(seed)
        self.block_size = data.block_size

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, index: Tensor | None = None) -> ActivationBatch:
        """Tokens ``index``, each with the outputs of another one among them."""
        batch = self.data.batch(index)
        other = torch.randperm(len(batch.x), generator=self.generator)
        return batch._replace(x=batch.x[other])


def codeless_proxies(data: ActivationData, tower: Tower) -> dict[str, Any]:
    """The mean, a ridge regression and the MLPs themselves: what frames every result.

    Parameters
    ----------
    data
        Tokens to train on.
    tower
        The tower whose MLPs are the identity.
    """

    def batches() -> Any:
        for index in torch.arange(len(data)).split(BATCH):
            yield data.batch(index)

    return {
        "ridge": RidgeProxy.fitted(batches()),
        "mean": MeanProxy.fitted(batches()),
        "identity": IdentityProxy(tower.mlps, tower.width),
    }
