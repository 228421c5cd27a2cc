"""Posterior predictive null check: which model can imitate which."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from probinterp.criticism.draws import Discrepancy, PredictiveDraw, self_describing
from probinterp.criticism.null_result import NullCheckResult
from probinterp.criticism.stream import seeded


@dataclass(frozen=True, eq=False)
class NullCandidate:
    """A model that takes part in a posterior predictive null check.

    Parameters
    ----------
    draws
        Draws of a fit to the training data that replicate, each used once, or replicates
        themselves, shape (R, N, G).
    discrepancy
        Pure function ``(x, draw) -> Tensor``, a scalar; large values mean that the model fits
        ``x`` badly.
    reference
        Draw of an **independent** fit of the same model, to the test data, at which the
        discrepancy is evaluated; or several, over which it is averaged.
    """

    draws: Iterable[PredictiveDraw] | Tensor
    discrepancy: Discrepancy
    reference: PredictiveDraw | Sequence[PredictiveDraw]


def posterior_predictive_null(
    candidates: Mapping[str, NullCandidate], x_val: Tensor, *, seed: int = 0
) -> NullCheckResult:
    r"""Ask of every pair of models whether one passes the predictive check of the other.

    .. math:: \mathrm{PPN}(d_B, A, B): \quad d_B(x^{rep}_A) \text{ against } d_B(x^{rep}_B)

    Three independent sets of data are needed: *train* to fit the models that replicate, *test* to
    fit them again for their discrepancies, and *val* for the held-out check of every model
    against itself. A model A that passes the check of B explains all that B's discrepancy can
    see; if A is simpler it may be preferred. Memory is that of one replicate.

    Parameters
    ----------
    candidates
        The models by name, two or more, from the simplest to the richest; all with the same
        number of replicates.
    x_val
        Validation data, shape (N, G), used neither for a fit nor for a discrepancy; replicates
        must have its shape.
    seed
        Seed of torch's global generators while the draws replicate, restored afterwards.

    Returns
    -------
    NullCheckResult
        Discrepancies of each model on the replicates of each, their divergences, the held-out
        checks and a verdict.

    Raises
    ------
    TypeError
        If a candidate is not one, or a discrepancy does not return a tensor.
    ValueError
        If there are fewer than two models, a reference also replicates, shapes or numbers of
        replicates differ, or a value is not finite.

    References
    ----------
    The Posterior Predictive Null (Moran, Cunningham and Blei, 2022).

    Examples
    --------
    >>> import torch
    >>> from torch.distributions import Independent, Normal
    >>> from probinterp.criticism import FunctionDraw, discrepancies
    >>> def draw(scale):
    ...     law = Independent(Normal(torch.zeros(50, 2), scale), 1)
    ...     return FunctionDraw(law.sample, lambda x: law)
    >>> nll = discrepancies.mean_negative_log_likelihood
    >>> candidates = {
    ...     name: NullCandidate([draw(scale) for _ in range(99)], nll, draw(scale))
    ...     for name, scale in {"narrow": 1.0, "wide": 3.0}.items()
    ... }
    >>> posterior_predictive_null(candidates, torch.zeros(50, 2) + 1).preferred()
    'narrow'
    """
    _validate(candidates, x_val)
    scorers = {name: _Scorer(name, candidate) for name, candidate in candidates.items()}
    # a hash of the seed: replicates must not repeat the numbers that simulated the data
    draw_seed = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
    with torch.no_grad(), seeded(draw_seed, x_val.device):
        columns = {name: _column(name, candidates[name], scorers, x_val) for name in scorers}
        heldout = torch.stack([scorer(x_val) for scorer in scorers.values()]).cpu()
    sizes = {name: column.shape[1] for name, column in columns.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"every model must have the same number of replicates, got {sizes}.")
    replicated = torch.stack(list(columns.values()), 1)
    _require_finite(replicated, heldout, tuple(scorers))
    return NullCheckResult(tuple(scorers), replicated, heldout, _notes(candidates))


class _Scorer:
    """Discrepancy of one model, averaged over its reference draws."""

    def __init__(self, name: str, candidate: NullCandidate) -> None:
        reference = candidate.reference
        if isinstance(reference, PredictiveDraw):
            reference = (reference,)
        self.references = tuple(reference)
        self.name, self.discrepancy = name, candidate.discrepancy
        if not self.references or not all(isinstance(r, PredictiveDraw) for r in self.references):
            raise TypeError(
                f"the reference of {name!r} must be a draw or draws with replicate() and "
                f"likelihood(x), got {candidate.reference!r:.80}."
            )

    def __call__(self, x: Tensor) -> Tensor:
        values = [self.discrepancy(x, reference) for reference in self.references]
        for value in values:
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"the discrepancy of {self.name!r} must return a torch.Tensor, "
                    f"got {type(value).__name__}."
                )
            if value.ndim:
                raise ValueError(
                    f"the discrepancy of {self.name!r} must return a scalar, "
                    f"got shape {tuple(value.shape)}."
                )
        return torch.stack(values).double().mean()


def _column(
    name: str, candidate: NullCandidate, scorers: Mapping[str, _Scorer], x_val: Tensor
) -> Tensor:
    """Every model's discrepancy of one model's replicates, shape (M, R)."""
    own = {id(reference) for reference in scorers[name].references}
    rows = []
    for index, draw in enumerate(candidate.draws):
        if id(draw) in own:
            raise ValueError(
                f"draw {index} of {name!r} is also its reference; the discrepancy must come from "
                "a fit to other data than the replicates."
            )
        x_rep = draw if isinstance(draw, Tensor) else draw.replicate()
        if x_rep.shape != x_val.shape:
            raise ValueError(
                f"replicates must have the shape of x_val, {tuple(x_val.shape)}, "
                f"got {tuple(x_rep.shape)} in draw {index} of {name!r}."
            )
        rows.append(torch.stack([scorer(x_rep) for scorer in scorers.values()]))
    if not rows:
        raise ValueError(f"{name!r} has no draws: there is nothing to replicate from.")
    return torch.stack(rows, 1).cpu()  # once: on a GPU, a look per draw would wait for the device


def _require_finite(replicated: Tensor, heldout: Tensor, models: tuple[str, ...]) -> None:
    values = torch.cat([replicated.flatten(1), heldout.unsqueeze(1)], 1)
    for name, bad in zip(models, (~values.isfinite()).sum(1).tolist(), strict=True):
        if bad:
            raise ValueError(
                f"the discrepancy of {name!r} is NaN or infinite on {bad} of {values.shape[1]} "
                "data sets."
            )


def _notes(candidates: Mapping[str, NullCandidate]) -> tuple[str, ...]:
    draws = {name: self_describing(candidate.draws) for name, candidate in candidates.items()}
    estimated = [name for name, made in draws.items() if getattr(made, "point_estimate", False)]
    twice = [name for name, made in draws.items() if getattr(made, "local", None) == "posterior"]
    notes = []
    if estimated:
        notes.append(
            f"Global parameters of {', '.join(estimated)} are point estimates: replicates lack "
            "their uncertainty and a held-out check rejects too often."
        )
    if twice:
        notes.append(
            f"Local latents of the replicates of {', '.join(twice)} were inferred from the data "
            "that they are compared with: a held-out check is blind to a wrong prior of them."
        )
    return tuple(notes)


def _validate(candidates: Mapping[str, NullCandidate], x_val: Tensor) -> None:
    if len(candidates) < 2:
        raise ValueError(f"a null check needs at least two models, got {len(candidates)}.")
    for name, candidate in candidates.items():
        if not isinstance(candidate, NullCandidate):
            raise TypeError(
                f"candidates must map names to NullCandidate, got {type(candidate).__name__} "
                f"for {name!r}."
            )
    if not isinstance(x_val, Tensor) or x_val.ndim != 2 or x_val.numel() == 0:
        raise ValueError("x_val must be a tensor of shape (N, G), not empty.")
    if not x_val.is_floating_point() or not x_val.isfinite().all():
        raise ValueError(f"x_val must be floating point and finite, got {x_val.dtype}.")
