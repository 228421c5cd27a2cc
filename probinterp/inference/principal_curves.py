"""Curves through the middle of points, and how well one coordinate explains many features."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

N_KNOTS, LAST_KNOT = 12, 1.8  # of the splines, in units of normal scores
N_COEFFICIENTS = N_KNOTS + 2
RIDGE = 1e-3  # on changes of slope
GRID, LAST_POINT = 281, 2.8  # points of a curve that observations are projected on
N_DIRECTIONS = 10  # principal components that a curve runs in
N_STARTS = 4  # leading components that a curve starts from, each alone
ITERATIONS, TOLERANCE = 30, 1e-4


class PrincipalCurve(NamedTuple):
    """A curve and where on it each observation lies.

    Attributes
    ----------
    score
        Position along the curve, standard normal by its ranks, (N,).
    residual
        Mean squared distance of the observations from it, by feature and observation.
    """

    score: Tensor
    residual: float


def normal_scores(values: Tensor) -> Tensor:
    """Standard normal quantiles of the ranks of ``values`` (N,); ties in order of appearance."""
    rank = values.argsort(stable=True).argsort(stable=True).to(values.dtype)
    return torch.special.ndtri((rank + 0.5) / len(rank))


def smooth(y: Tensor, score: Tensor) -> Tensor:
    """Fit of ``y`` (N, G) by a linear spline in ``score`` (N,), with 14 coefficients a feature."""
    basis = _basis(score)
    return basis @ _coefficients(basis, y)


def smooth_residual(y: Tensor, score: Tensor) -> float:
    """Mean squared residual of :func:`smooth`."""
    return float((y - smooth(y, score)).square().mean())


def principal_curve(y: Tensor, starts: Tensor | None = None) -> PrincipalCurve:
    r"""Curve that minimises the distances of observations from their projections on it.

    .. math:: \min_{f, t} \sum_i \lVert y_i - f(t_i) \rVert^2

    Splines and projections take turns, in the leading principal components. A curve depends on
    where it starts: it runs from each leading component, from four mixtures of the first two, and
    from ``starts``; the best is returned.

    Parameters
    ----------
    y
        Observations, (N, G), features with noise of equal variance.
    starts
        Further orderings of the observations to start from, (N, s).

    References
    ----------
    Principal Curves (Hastie and Stuetzle, 1989).
    """
    y = y - y.mean(0)
    left, size, _ = torch.linalg.svd(y, full_matrices=False)
    points = left[:, :N_DIRECTIONS] * size[:N_DIRECTIONS]
    orders = list(points[:, :N_STARTS].unbind(1))
    if points.shape[1] > 1:
        mixtures = ((1.0, 1.0), (1.0, -1.0), (0.5, 1.0), (0.5, -1.0))
        orders += [a * points[:, 0] + b * points[:, 1] for a, b in mixtures]
    orders += [] if starts is None else list(starts.unbind(1))
    found = min((_curve(points, order) for order in orders), key=lambda curve: curve.residual)
    return PrincipalCurve(found.score, smooth_residual(y, found.score))


def _curve(points: Tensor, order: Tensor) -> PrincipalCurve:
    grid = torch.linspace(-LAST_POINT, LAST_POINT, GRID, dtype=points.dtype, device=points.device)
    path_basis, score = _basis(grid), normal_scores(order)
    best = PrincipalCurve(score, smooth_residual(points, score))
    for _ in range(ITERATIONS):
        path = path_basis @ _coefficients(_basis(score), points)
        nearest = grid[torch.cdist(points, path).argmin(1)]
        # projections fall on a grid: ties keep the order they had
        score = normal_scores(nearest + 1e-3 * score)
        residual = smooth_residual(points, score)
        if residual > best.residual * (1 - TOLERANCE):
            break
        best = PrincipalCurve(score, residual)
    return best


def _basis(score: Tensor) -> Tensor:
    knots = torch.linspace(-LAST_KNOT, LAST_KNOT, N_KNOTS, dtype=score.dtype, device=score.device)
    ramps = (score.unsqueeze(1) - knots).relu()
    return torch.cat([torch.ones_like(ramps[:, :1]), score.unsqueeze(1), ramps], dim=1)


def _coefficients(basis: Tensor, y: Tensor) -> Tensor:
    gram = basis.mT @ basis / len(basis)
    gram[2:, 2:] += RIDGE * torch.eye(N_KNOTS, dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(gram, basis.mT @ y / len(basis))
