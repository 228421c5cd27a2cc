"""Codes unfolded, gathered from two columns into one, and turned to where they are sparse."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor

from probinterp.inference.code_check import CodeCheck, code_check
from probinterp.inference.data import Data, to_device
from probinterp.inference.elbo import full_objective
from probinterp.inference.proposals import refit
from probinterp.inference.seeding import seeded

REFIT_SHARE = 0.5  # of the epochs of a fit
KNOWN_UP_TO = 0.1  # standard deviation with which codes count as known
N_STEPS, LEARNING_RATE = 150, 1e-2


class CodeChange(NamedTuple):
    """One change of :func:`mend_codes`: ``column`` got a new code, ``dropped`` was emptied."""

    column: int
    dropped: int | None
    reason: str


class CodeMending(NamedTuple):
    """What :func:`mend_codes` did.

    Attributes
    ----------
    model
        The mended model, or the one that was given where nothing was to be done or nothing won.
    changes
        Changes that were kept, in order.
    rejected
        Changes of later rounds, which did not win.
    checks
        Check before the first round and after every round up to the kept one.
    objectives
        ELBO per observation before the first round and after every round up to the kept one.
    """

    model: Any
    changes: tuple[CodeChange, ...]
    rejected: tuple[CodeChange, ...]
    checks: tuple[CodeCheck, ...]
    objectives: tuple[float, ...]


def mend_codes(
    model: Any,
    data: Data,
    *,
    max_epochs: int,
    rounds: int = 3,
    refit_share: float = REFIT_SHARE,
    seed: int = 0,
    **fit_options: Any,
) -> CodeMending:
    """Unfold codes by their principal curves, gather divided ones, turn rotated ones, and refit.

    In every round the model is trained to the new codes as if they were known, then refitted for
    half of the epochs. An unchanged model is refitted beside it: the round with the largest ELBO,
    global terms included, is returned if that is at least the ELBO of the unchanged model after as
    many epochs. A round may lose what the next one wins.

    Parameters
    ----------
    model
        Fitted model with sparse loadings; it is not changed.
    data
        Training data.
    max_epochs
        Epochs of the fit, a share of which a refit takes.
    rounds
        Largest number of rounds.
    refit_share
        Epochs of a refit in units of ``max_epochs``.
    seed
        Seed of training and refits.
    **fit_options
        Passed to :func:`probinterp.fit`.
    """
    start = _State(model, code_check(model, data, seed=seed), (), full_objective(model, data))
    states, control = [start], deepcopy(model)
    epochs = max(1, round(refit_share * max_epochs))
    best = 0
    while len(states) <= rounds and not states[-1].check.passed:
        latest = states[-1]
        candidate = deepcopy(latest.model)
        made = _recode(candidate, data, latest.check, seed + len(states))
        for trained in (candidate, control):
            refit(trained, data, epochs, seed + len(states), fit_options)
        check, objective = code_check(candidate, data, seed=seed), full_objective(candidate, data)
        states.append(_State(candidate, check, (*latest.changes, *made), objective))
        if objective >= max(states[best].objective, full_objective(control, data)):
            best = len(states) - 1
    kept = states[: best + 1]
    return CodeMending(
        kept[-1].model,
        kept[-1].changes,
        states[-1].changes[len(kept[-1].changes) :],
        tuple(state.check for state in kept),
        tuple(state.objective for state in kept),
    )


class _State(NamedTuple):
    """A model on the way, and the changes that led to it."""

    model: Any
    check: CodeCheck
    changes: tuple[CodeChange, ...]
    objective: float


def _recode(model: Any, data: Data, check: CodeCheck, seed: int) -> list[CodeChange]:
    """Train ``model`` in place to the codes that a check proposes."""
    batch = to_device(data.batch(check.rows), model.loadings.device)
    codes = check.codes.clone()
    made = [CodeChange(r.kept, r.dropped, "one factor in two columns") for r in check.repeats]
    for repeat in check.repeats:
        codes[:, repeat.kept] = repeat.score
        codes[:, repeat.dropped] = 0
    model.empty([repeat.dropped for repeat in check.repeats])
    taken = {column for change in made for column in (change.column, change.dropped)}
    for rotation in check.rotations:
        pair = [rotation.first, rotation.second]
        if not taken & set(pair):
            codes[:, pair] = rotation.turned(codes)
            made += [CodeChange(column, None, "rotated code") for column in pair]
            taken |= set(pair)
    for i in check.folded.nonzero().flatten().tolist():
        column = int(check.columns[i])
        if column not in taken:
            codes[:, column] = check.score[:, i]
            made.append(CodeChange(column, None, "folded code"))
    with seeded(seed, codes.device):
        _train_to_codes(model, batch, codes, [change.column for change in made])
    return made


def _train_to_codes(model: Any, batch: Any, codes: Tensor, fresh: list[int]) -> None:
    r"""Maximise :math:`\log p(x \mid z) + \log p(W) / N + \log N(z \mid \mu(x), 0.1^2)` at known z.

    Posterior scales keep their values, but for the ``fresh`` columns, whose start anew.
    """
    with torch.no_grad():
        model.encoder.log_variance.weight[fresh] = 0
        model.encoder.log_variance.bias[fresh] = 2 * torch.tensor(KNOWN_UP_TO).log()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    for step in range(N_STEPS):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / N_STEPS)
        error = (model.factor_posterior(batch).mean - codes).square().sum(1).mean()
        near = codes + KNOWN_UP_TO * torch.randn_like(codes) * (codes != 0)
        fit = model.likelihood(model.decode(near), batch).log_prob(batch.x).mean()
        prior = model.sparse.log_prior() / len(codes)
        optimizer.zero_grad()
        (error / (2 * KNOWN_UP_TO**2) - fit - prior).backward()
        optimizer.step()
        model.sparse.update()
