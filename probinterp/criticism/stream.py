"""The one loop over draws: replicate, evaluate, keep the discrepancies and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from probinterp.criticism.draws import Discrepancy, PredictiveDraw
from probinterp.criticism.reference import Reference, require_draw
from probinterp.criticism.regime import RegimeNumber


class StreamedValues(NamedTuple):
    """Discrepancies of the compared data and of the replicates, on the CPU."""

    heldout: Tensor  # (S, ...) where d is evaluated at each draw, else (1, ...)
    replicated: Tensor  # (S, ...)
    regime: float | None


def stream(
    reference: Reference, x: Tensor, discrepancy: Discrepancy, regime: RegimeNumber | None
) -> StreamedValues:
    """Evaluate the discrepancy of ``x`` and of one replicate per draw.

    Parameters
    ----------
    reference
        Where the discrepancy is evaluated, and the draws that replicate.
    x
        The compared data, shape (N, G).
    discrepancy
        Pure function ``(x, draw) -> Tensor``.
    regime
        Accumulator that is shown the likelihood of ``x`` under each draw, or None.

    Raises
    ------
    TypeError, ValueError
        If a draw, a replicate or a discrepancy is not what it should be.
    """
    heldout: list[Tensor] = []
    replicated: list[Tensor] = []
    totals: list[Tensor] = []
    for index, draw in enumerate(reference.replicating):
        require_draw(draw, f"draw {index}")
        at = draw if reference.draw is None else reference.draw
        x_rep = draw.replicate()
        _require_like(x_rep, x, index)
        if not heldout or reference.draw is None:
            heldout.append(_evaluate(discrepancy, x, at, heldout))
        replicated.append(_evaluate(discrepancy, x_rep, at, heldout))
        totals.append(x_rep.sum())
        if regime is not None:
            regime.update(draw.likelihood(x))
    if not replicated:
        raise ValueError("draws is empty: there is nothing to replicate from.")
    # One look at the end: on a GPU, a look per draw would wait for the device each time.
    _require_numbers(torch.stack(totals), "replicate() returned NaN in draw {}.")
    return StreamedValues(
        _require_numbers(torch.stack(heldout), "the discrepancy of the data is NaN (draw {})."),
        _require_numbers(torch.stack(replicated), "the discrepancy of replicate {} is NaN."),
        None if regime is None else regime.value(),
    )


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators for the block.

    The seed comes from a hash of the user's, so that replicates do not repeat the random numbers
    of data that were simulated under the same seed.
    """
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        for one in cuda:
            with torch.cuda.device(one):
                torch.cuda.manual_seed(seed)
        yield


def _require_like(x_rep: object, x: Tensor, index: int) -> None:
    if not isinstance(x_rep, Tensor):
        raise TypeError(
            f"replicate() must return a torch.Tensor, got {type(x_rep).__name__} in draw {index}."
        )
    if x_rep.shape != x.shape:
        raise ValueError(
            f"replicate() must return the shape of the data, {tuple(x.shape)}, "
            f"got {tuple(x_rep.shape)} in draw {index}."
        )
    if x_rep.device != x.device:
        raise ValueError(
            f"replicate() must return data on {x.device}, got {x_rep.device} in draw {index}."
        )


def _evaluate(
    discrepancy: Discrepancy, x: Tensor, draw: PredictiveDraw, previous: list[Tensor]
) -> Tensor:
    value = discrepancy(x, draw)
    if not isinstance(value, Tensor):
        raise TypeError(f"the discrepancy must return a torch.Tensor, got {type(value).__name__}.")
    if value.ndim > 1 or value.numel() == 0:
        raise ValueError(
            "the discrepancy must return a scalar or one value per feature or unit, "
            f"got shape {tuple(value.shape)}."
        )
    if previous and value.shape != previous[0].shape:
        raise ValueError(
            f"the discrepancy changed shape: first {tuple(previous[0].shape)}, "
            f"then {tuple(value.shape)}."
        )
    return value.detach().clone()  # a view would keep the whole replicate in memory


def _require_numbers(values: Tensor, message: str) -> Tensor:
    values = values.cpu()
    bad = values.isnan().reshape(len(values), -1).any(1)
    if bad.any():
        raise ValueError(message.format(int(bad.nonzero()[0])))
    return values
