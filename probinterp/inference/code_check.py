"""Whether each factor is coded once, one-to-one, and by itself."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from probinterp.inference.data import Data, as_batch, minibatch_order, to_device
from probinterp.inference.posterior import posterior
from probinterp.inference.principal_curves import (
    N_COEFFICIENTS,
    PrincipalCurve,
    normal_scores,
    principal_curve,
    smooth,
    smooth_residual,
)
from probinterp.inference.rotations import Rotation, find_rotations
from probinterp.models.base import Batch
from probinterp.models.spike_slab_loadings import active_loadings

MOST_OBSERVATIONS = 4096  # that codes are checked on
FEWEST_OBSERVATIONS = 4 * N_COEFFICIENTS  # through which a curve is laid
FOLDED = 0.95  # residual of the curve over that of the code, below which the code is folded
DEPENDENT = 0.2  # adjusted R^2 of one code given another
ONE_CURVE = 1.25  # residual of one curve over that of two codes, below which one will do


class Repeat(NamedTuple):
    """Two columns whose features one factor explains.

    Attributes
    ----------
    kept, dropped
        The columns.
    dependence
        Adjusted R-squared of the dropped code given a smooth function of the kept one.
    score
        Code of the one factor, (N,), zero outside the gate.
    """

    kept: int
    dropped: int
    dependence: float
    score: Tensor


class CodeCheck(NamedTuple):
    r"""How well each code explains its features, against a curve through them.

    Attributes
    ----------
    rows
        Observations that were looked at, (N,).
    columns
        Columns that reach a feature, (k,).
    residual
        Mean squared residual of a column's features, in units of the noise, after the best smooth
        function of its code, (k,).
    curve_residual
        The same after the principal curve of these features, (k,).
    score
        Positions on the curves, (N, k), zero outside the gate: codes that unfold.
    folded
        Whether the curve leaves less than 95 % of the residual, (k,): the code takes equal values
        at different points of the curve.
    repeats
        Pairs of columns of one block that code the same factor.
    rotations
        Pairs of columns of one block whose effects another rotation would make sparser.
    codes
        The codes that were looked at, (N, K).
    """

    rows: Tensor
    columns: Tensor
    residual: Tensor
    curve_residual: Tensor
    score: Tensor
    folded: Tensor
    repeats: tuple[Repeat, ...]
    rotations: tuple[Rotation, ...]
    codes: Tensor

    @property
    def passed(self) -> bool:
        """Whether no code is folded, divided between columns or rotated into another."""
        return not bool(self.folded.any()) and not self.repeats and not self.rotations


class _Explained(NamedTuple):
    """A fitted model at its codes, everything on the scale of the linear predictor."""

    model: Any
    z: Tensor
    gate: Tensor
    used: Tensor
    whole: Tensor
    residual: Tensor
    unit: Tensor

    def features_of(self, columns: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """What is left for the columns to explain, (n, G'), what they leave, and which rows."""
        rows = self.gate[:, columns].all(1)
        support = self.used[:, columns].any(1)
        effect = self.model.effect(self.z, columns)
        left = (self.residual / self.unit)[rows][:, support]
        y = left + (effect / self.unit)[rows][:, support]
        return y - y.mean(0), left, rows


@torch.no_grad()
def code_check(model: Any, data: Data | Batch, *, seed: int = 0) -> CodeCheck:
    r"""Look for codes that fold back on themselves, are divided between columns, or are rotated.

    A factor that shows mostly through features that are not monotone in it, such as
    :math:`\sin 1.5 z`, is easily coded by those features themselves: then two values of the factor
    share one code, and the features that could tell them apart stay unexplained. The
    principal curve of all features of the column, what the other columns explain taken out, tells.
    Columns of fewer than 56 observations are left alone: a curve would follow their noise.

    Parameters
    ----------
    model
        Fitted model with sparse loadings.
    data
        Observations; of many, 4096 are drawn.
    seed
        Seed of that draw.

    References
    ----------
    Principal Curves (Hastie and Stuetzle, 1989); the check is ours.
    """
    batch, rows = _some(data, model.loadings.device, seed)
    explained = _explain(model, batch)
    columns = explained.used.any(0).nonzero().flatten().tolist()
    residual, curve_residual, scores = [], [], []
    for k in columns:
        y, _, inside = explained.features_of([k])
        code = explained.z[inside, k]
        residual.append(smooth_residual(y, normal_scores(code)))
        curve = PrincipalCurve(code, residual[-1])
        if len(code) >= FEWEST_OBSERVATIONS:
            curve = principal_curve(y, code.unsqueeze(1))
        curve_residual.append(curve.residual)
        scores.append(_spread(curve.score, inside))
    before, after = torch.tensor(residual), torch.tensor(curve_residual)
    return CodeCheck(
        rows,
        torch.tensor(columns, dtype=torch.long),
        before,
        after,
        torch.stack(scores, 1) if scores else explained.z[:, :0],
        after < FOLDED * before,
        tuple(_repeats(explained, columns)),
        tuple(find_rotations(explained.z, explained.whole, explained.gate, columns)),
        explained.z,
    )


def _repeats(explained: _Explained, columns: list[int]) -> list[Repeat]:
    """Pairs that one curve explains about as well, strongest dependence first, disjoint."""
    gate, z = explained.gate, explained.z
    pairs = [
        (_dependence(z[rows, i], z[rows, j]), i, j)
        for i in columns
        for j in columns
        if i != j and torch.equal(gate[:, i], gate[:, j])
        for rows in [gate[:, i]]
    ]
    found: list[Repeat] = []
    taken: set[int] = set()
    for dependence, kept, dropped in sorted(pairs, reverse=True):
        if dependence < DEPENDENT or taken & {kept, dropped}:
            continue
        y, left, inside = explained.features_of([kept, dropped])
        curve = principal_curve(y, z[inside][:, [kept, dropped]])
        if curve.residual < ONE_CURVE * float(left.square().mean()):
            taken |= {kept, dropped}
            found.append(Repeat(kept, dropped, dependence, _spread(curve.score, inside)))
    return found


def _dependence(given: Tensor, code: Tensor) -> float:
    """Adjusted R-squared of ``code`` (n,) given a smooth function of the other; 0 for few."""
    n = len(code)
    if n < FEWEST_OBSERVATIONS:
        return 0.0
    y = (code - code.mean()).unsqueeze(1)
    left = (y - smooth(y, normal_scores(given))).square().sum() / (n - N_COEFFICIENTS)
    return 1 - float(left / (y.square().sum() / (n - 1)))


def _explain(model: Any, batch: Batch) -> _Explained:
    z = posterior(model, batch)["z"].mean
    whole = model.decode(z)
    with torch.enable_grad():
        eta = whole.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model.likelihood(eta, batch).mean.sum(), eta)
    law = model.likelihood(whole, batch)
    residual = (batch.x - law.mean) / slope  # working residuals, as in Fisher scoring
    if batch.mask is not None:
        residual = residual * batch.mask
    unit = (law.variance.sqrt() / slope).median(0).values
    used = active_loadings(model.loadings, model.inclusion_probability)
    return _Explained(model, z, model.gate_of(batch), used, whole, residual, unit)


def _some(data: Data | Batch, device: torch.device, seed: int) -> tuple[Batch, Tensor]:
    if isinstance(data, Batch):
        return as_batch(data, device), torch.arange(len(data.x))
    n = len(data)
    rows = torch.arange(n)
    if n > MOST_OBSERVATIONS:
        rows = minibatch_order(n, MOST_OBSERVATIONS, seed=seed, epoch=-1)[0].sort().values
    return to_device(data.batch(rows), device), rows


def _spread(score: Tensor, rows: Tensor) -> Tensor:
    found = score.new_zeros(len(rows))
    found[rows] = score
    return found
