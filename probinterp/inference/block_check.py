"""Whether factors of multi-study models sit in the block they belong to, and how to move them."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor

from probinterp.inference.data import Data, as_batch
from probinterp.inference.elbo import full_objective
from probinterp.inference.posterior import posterior
from probinterp.inference.proposals import refitted_if_better
from probinterp.models.base import Batch, ProbabilisticModel
from probinterp.models.blocks import SHARED
from probinterp.models.spike_slab_loadings import active_loadings

LARGEST_RATIO = 3.0  # of the variances of a shared factor's code in two studies
ACTIVE_SHARE = 0.5  # of the largest variance, from which on a factor is active in a study
DOUBLE_CODED = 0.6  # |correlation| of two columns within a study
REFIT_SHARE = 0.2  # of the epochs of a fit


class BlockCheck(NamedTuple):
    r"""Where the shared columns of a multi-study model vary.

    Attributes
    ----------
    columns
        Shared columns that reach a feature, (k,).
    spread
        Variance of the posterior mean of each in every study, (M, k).
    effect
        Variance of its decoded effect in every study, summed over features, (M, k).
    ratio
        :math:`\max_m v_{mk} / \min_m v_{mk}` of the variances, (k,).
    misplaced
        Whether the ratio exceeds 3, (k,): a shared factor varies about as much in all studies.
    active
        Whether a column varies in a study at least half as much as where it varies most, (M, k).
    double_coded
        Pairs (shared column, specific column) that correlate with :math:`|r| \ge 0.6` within the
        study of the second.
    """

    columns: Tensor
    spread: Tensor
    effect: Tensor
    ratio: Tensor
    misplaced: Tensor
    active: Tensor
    double_coded: tuple[tuple[int, int], ...]

    @property
    def passed(self) -> bool:
        """Whether no column is misplaced and no factor is coded twice."""
        return not bool(self.misplaced.any()) and not self.double_coded


class Move(NamedTuple):
    """One change of :func:`mend_blocks`: ``column`` went to ``targets``; none: it was cleared."""

    column: int
    targets: tuple[int, ...]
    reason: str


class Mending(NamedTuple):
    """What :func:`mend_blocks` did.

    Attributes
    ----------
    model
        The mended model, or the one that was given where nothing was to be done or nothing won.
    moves
        Changes that were kept, in order.
    rejected
        Changes after which the refitted model had a smaller objective than without them.
    checks
        Check before every round and after the last.
    objectives
        ELBO per observation before and after every round that was kept.
    """

    model: ProbabilisticModel
    moves: tuple[Move, ...]
    rejected: tuple[Move, ...]
    checks: tuple[BlockCheck, ...]
    objectives: tuple[float, ...]


@torch.no_grad()
def block_check(model: Any, data: Data | Batch) -> BlockCheck:
    """Compare the variances of shared codes between studies, and look for factors coded twice.

    Parameters
    ----------
    model
        Fitted multi-study model with ``block``, ``sparse`` and ``decode``.
    data
        Observations of all studies.

    References
    ----------
    The two ways in which a specific factor may hide in the shared block are not penalised by the
    prior of Nonlinear multi-study factor analysis (Moran and Krishnan, 2026); this check is ours.
    """
    batch = as_batch(data, model.loadings.device)
    z = posterior(model, batch)["z"].mean
    used = active_loadings(model.loadings, model.inclusion_probability).any(0)
    columns = (used & (model.block == SHARED)).nonzero().flatten()
    study = batch.study
    if study is None:
        raise ValueError("a block check compares studies and needs batch.study, got None.")
    rows = [study.eq(m) for m in range(model.n_studies)]
    spread = torch.stack([_variance(z[r][:, columns]) for r in rows])
    effect = torch.stack([_effects(model, z[r], columns) for r in rows])
    ratio = spread.amax(0) / spread.amin(0).clamp_min(torch.finfo(z.dtype).tiny)
    return BlockCheck(
        columns.cpu(),
        spread.cpu(),
        effect.cpu(),
        ratio.cpu(),
        (ratio > LARGEST_RATIO).cpu(),
        (spread > ACTIVE_SHARE * spread.amax(0)).cpu(),
        _double_coded(z, rows, columns, used, model.block),
    )


def mend_blocks(
    model: Any,
    data: Data,
    *,
    max_epochs: int,
    rounds: int = 2,
    refit_share: float = REFIT_SHARE,
    seed: int = 0,
    **fit_options: Any,
) -> Mending:
    """Move misplaced factors to the block of their study, refit, and keep what improves the fit.

    A shared column that is active in one study goes to a column of that study's block; one that is
    active in some studies but not all is copied into each of their blocks; a specific column that
    repeats a truly shared one is cleared. Every round is followed by a refit of 20 % of the
    epochs and kept if the ELBO, global terms included, is at least that of the unchanged model
    after the same refit.

    Parameters
    ----------
    model
        Fitted multi-study model; it is not changed.
    data
        Training data.
    max_epochs
        Epochs of the fit, a share of which a refit takes.
    rounds
        Largest number of rounds.
    refit_share
        Epochs of a refit in units of ``max_epochs``.
    seed
        Seed of the refits and of the columns that start anew.
    **fit_options
        Passed to :func:`probinterp.fit`.
    """
    check, objective = block_check(model, data), full_objective(model, data, seed=seed)
    moves: list[Move] = []
    rejected: list[Move] = []
    checks, objectives = [check], [objective]
    for round_ in range(rounds):
        if check.passed:
            break
        candidate = deepcopy(model)
        made = _move(candidate, check, seed + round_)
        if not made:
            break
        epochs = max(1, round(refit_share * max_epochs))
        found = refitted_if_better(
            model, candidate, data, epochs=epochs, seed=seed + round_, options=fit_options
        )
        if found is None:
            rejected = made
            break
        model, objective = found
        check = block_check(model, data)
        moves += made
        checks.append(check)
        objectives.append(objective)
    return Mending(model, tuple(moves), tuple(rejected), tuple(checks), tuple(objectives))


def _variance(z: Tensor) -> Tensor:
    return z.var(0) if z.numel() else z.sum(0)  # torch warns of the variance of nothing


def _effects(model: Any, z: Tensor, columns: Tensor) -> Tensor:
    found = [model.effect(z, [k]).var(0).sum() for k in columns.tolist()]
    return torch.stack(found) if found else z.new_empty(0)


def _double_coded(
    z: Tensor, rows: list[Tensor], columns: Tensor, used: Tensor, block: Tensor
) -> tuple[tuple[int, int], ...]:
    pairs = []
    for m, chosen in enumerate(rows):
        own = (used & (block == m)).nonzero().flatten()
        if not len(own) or not len(columns):
            continue
        a, b = (_standardised(z[chosen][:, which]) for which in (columns, own))
        close = ((a.mT @ b).abs() / len(a) >= DOUBLE_CODED).nonzero().tolist()
        pairs += [(int(columns[i]), int(own[j])) for i, j in close]
    return tuple(pairs)


def _standardised(z: Tensor) -> Tensor:
    return (z - z.mean(0)) / z.std(0, correction=0).clamp_min(torch.finfo(z.dtype).eps)


@torch.no_grad()
def _move(model: Any, check: BlockCheck, seed: int) -> list[Move]:
    used = active_loadings(model.loadings, model.inclusion_probability).any(0)
    free = {
        m: (~used & (model.block == m)).nonzero().flatten().tolist() for m in range(model.n_studies)
    }
    twins: dict[int, list[int]] = {}
    for shared, specific in check.double_coded:
        twins.setdefault(shared, []).append(specific)
    generator = torch.Generator().manual_seed(seed)
    moves: list[Move] = []
    for i, column in enumerate(check.columns.tolist()):
        own = {int(model.block[t]): t for t in twins.get(column, [])}
        if not check.misplaced[i]:
            for target in own.values():
                _clear(model, target, generator)
                moves.append(Move(target, (), "repeats a shared factor"))
            continue
        studies = check.active[:, i].nonzero().flatten().tolist()
        targets = [own[m] if m in own else free[m].pop(0) for m in studies if m in own or free[m]]
        if len(targets) < len(studies) or len(studies) == model.n_studies:
            continue  # no room: the column stays where it is
        for target in targets:
            _copy(model, column, target)
        _clear(model, column, generator)
        moves.append(Move(column, tuple(targets), f"active in studies {studies} only"))
    return moves


def _column_views(model: Any) -> list[Callable[[int], Tensor]]:
    """Everything in a model that belongs to one column."""
    encoder, sparse = model.encoder, model.sparse
    return [
        lambda k: sparse.weight.data[:, k],
        lambda k: sparse.support[:, k],
        lambda k: model.decoder.first_direction.data[:, k],
        *(lambda k, head=head: head.weight.data[k] for head in (encoder.loc, encoder.log_variance)),
        *(lambda k, head=head: head.bias.data[k] for head in (encoder.loc, encoder.log_variance)),
        lambda k: sparse.inclusion_rate[k],
    ]


def _copy(model: Any, source: int, target: int) -> None:
    for view in _column_views(model):
        view(target).copy_(view(source))


def _clear(model: Any, column: int, generator: torch.Generator) -> None:
    """Start a column anew: small random loadings, a posterior at the prior."""
    loadings, encoder = model.sparse.weight.data, model.encoder
    fresh = 0.1 * torch.randn(len(loadings), generator=generator)
    loadings[:, column] = fresh.to(loadings)
    for head in (encoder.loc, encoder.log_variance):
        head.weight.data[column] *= 0.1
        head.bias.data[column] = 0.0
    model.sparse.inclusion_rate[column] = 0.5
