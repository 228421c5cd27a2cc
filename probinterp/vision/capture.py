"""Forward hooks that read inputs and outputs of the MLPs, and the check that they read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from probinterp.vision.towers import Tower, UnsupportedTowerError


class Captured:
    """What the hooks of one forward pass saw, by layer, each (images, tokens, width)."""

    def __init__(self) -> None:
        self.inputs: dict[int, Tensor] = {}
        self.outputs: dict[int, Tensor] = {}

    def clear(self) -> None:
        """Forget the pass, so that memory is free for the next one."""
        self.inputs.clear()
        self.outputs.clear()


@contextmanager
def capturing(tower: Tower, layers: Sequence[int], *, outputs: bool = True) -> Iterator[Captured]:
    """Copy what the MLPs of ``layers`` read and write on each forward pass inside the context.

    Copies, because an in-place LayerScale would overwrite the output. The hooks are gone at the
    end, also after an error.

    Raises
    ------
    RuntimeError
        If a proxy stands in the place of an MLP.
    """
    captured = Captured()
    for layer in layers:
        if "forward" in vars(tower.mlps[layer]):
            raise RuntimeError(f"{tower.hook_names[layer]} is replaced at the moment.")

    def hook(layer: int, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        captured.inputs[layer] = tower.to_images_first(arguments[0]).detach().clone()
        if outputs:
            captured.outputs[layer] = tower.to_images_first(output).detach().clone()

    handles = []
    try:
        for layer in layers:
            handles.append(
                tower.mlps[layer].register_forward_hook(
                    lambda _, arguments, output, layer=layer: hook(layer, arguments, output)
                )
            )
        yield captured
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every part gets back the mode it was in."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training


def recompute(tower: Tower, layers: Sequence[int], inputs: Tensor) -> Tensor:
    """MLP outputs (N, L, D) of ``layers`` for MLP inputs (N, L, D), token by token."""
    outputs = []
    for i, layer in enumerate(layers):
        mlp = tower.mlps[layer]
        # of the class: a proxy may stand in for the MLP of the instance
        outputs.append(type(mlp).forward(mlp, inputs[:, i]))
    return torch.stack(outputs, 1)


def verify_hooks(tower: Tower, images: Tensor) -> None:
    """Check on a few images that the hooks see what a transcoder stands for.

    In every block: the MLP runs once; its input is the very tensor that the second LayerNorm
    returned; it sees as many tokens as the tower says; running it again gives the same output,
    and on tokens alone the same up to rounding.

    Raises
    ------
    UnsupportedTowerError
        Naming the first block and the check that failed.
    """
    normed: dict[int, Tensor] = {}
    seen: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(layer: int, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        if layer in seen:
            raise _failed(tower, layer, "its MLP runs more than once in a forward pass")
        if arguments[0] is not normed.get(layer):
            raise _failed(tower, layer, "its MLP does not read the output of its LayerNorm")
        seen[layer] = (arguments[0], output.detach().clone())

    handles = []
    try:
        for i, (norm, mlp) in enumerate(zip(tower.norms, tower.mlps, strict=True)):
            handles.append(norm.register_forward_hook(lambda m, a, o, i=i: normed.update({i: o})))
            handles.append(mlp.register_forward_hook(lambda m, a, o, i=i: keep(i, a, o)))
        with evaluating(tower.visual):
            tower.encode_image(images)
    finally:
        for handle in handles:
            handle.remove()
    with evaluating(tower.visual):
        for layer in range(tower.n_layers):
            _verify_layer(tower, layer, seen.get(layer), len(images))


def _verify_layer(
    tower: Tower, layer: int, seen: tuple[Tensor, Tensor] | None, n_images: int
) -> None:
    if seen is None:
        raise _failed(tower, layer, "its MLP did not run")
    inputs, output = seen
    shape = tuple(tower.to_images_first(inputs).shape)
    expected = (n_images, tower.n_tokens, tower.width)
    if shape != expected or output.shape != inputs.shape:
        raise _failed(
            tower, layer, f"its MLP maps {shape} to {tuple(output.shape)}, expected {expected}"
        )
    mlp, scale = tower.mlps[layer], output.abs().max().clamp_min(1e-12)
    again = (mlp(inputs) - output).abs().max() / scale
    alone = (mlp(inputs.flatten(0, 1)) - output.flatten(0, 1)).abs().max() / scale
    rounding = 100 * torch.finfo(output.dtype).eps
    if again > rounding or alone > rounding:
        raise _failed(
            tower,
            layer,
            f"running its MLP again changes the output by {again.item():.1e}, token by token by "
            f"{alone.item():.1e} of its largest entry",
        )


def _failed(tower: Tower, layer: int, what: str) -> UnsupportedTowerError:
    name = type(tower.visual).__name__
    return UnsupportedTowerError(f"{tower.hook_names[layer]} of {name}: {what}.")
