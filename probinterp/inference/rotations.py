"""Pairs of codes that another rotation would make sparser."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

SPARSER = 0.9  # of the sum of absolute effects, below which a pair is rotated
N_ANGLES = 91  # from -45 to 45 degrees; beyond, columns change places or signs


class Rotation(NamedTuple):
    """Two columns of one block and the angle, in radians, at which their effects are sparsest.

    Attributes
    ----------
    first, second
        The columns.
    angle
        Codes ``(z_1, z_2)`` become ``(c z_1 + s z_2, c z_2 - s z_1)`` with its cosine and sine.
    gain
        Sum of the absolute effects at that angle over the sum as they are.
    """

    first: int
    second: int
    angle: float
    gain: float

    def turned(self, z: Tensor) -> Tensor:
        """The two codes after the rotation, (N, 2)."""
        return z[:, [self.first, self.second]] @ _turn(torch.tensor([self.angle]).to(z))[0]


def find_rotations(z: Tensor, decoded: Tensor, gate: Tensor, columns: list[int]) -> list[Rotation]:
    r"""Pairs of columns whose linear effects become sparser if their codes are rotated.

    .. math:: \min_\phi \frac{\lVert A R_\phi \rVert_1}{\lVert A \rVert_1}

    with A the regression of the decoded features on the two codes. The prior of the loadings
    prefers the sparser angle, but a local optimum need not have it.

    Parameters
    ----------
    z
        Codes, (N, K).
    decoded
        Linear predictor of every feature, (N, G).
    gate
        Which columns each observation has, (N, K) boolean; only columns of one block are compared.
    columns
        Columns in use.
    """
    found: list[Rotation] = []
    taken: set[int] = set()
    candidates = [
        _sparsest(z, decoded, gate[:, i], i, j)
        for at, i in enumerate(columns)
        for j in columns[at + 1 :]
        if torch.equal(gate[:, i], gate[:, j])
    ]
    for rotation in sorted(candidates, key=lambda one: one.gain):
        if rotation.gain < SPARSER and not taken & {rotation.first, rotation.second}:
            taken |= {rotation.first, rotation.second}
            found.append(rotation)
    return found


def _sparsest(z: Tensor, decoded: Tensor, rows: Tensor, first: int, second: int) -> Rotation:
    codes = z[rows][:, [first, second]]
    codes = (codes - codes.mean(0)) / codes.std(0).clamp_min(torch.finfo(z.dtype).eps)
    y = decoded[rows] - decoded[rows].mean(0)
    effects = torch.linalg.lstsq(codes, y).solution.mT  # (G, 2)
    angles = torch.linspace(-math.pi / 4, math.pi / 4, N_ANGLES, dtype=z.dtype, device=z.device)
    size = (effects @ _turn(angles)).abs().sum((1, 2))
    best = int(size.argmin())
    return Rotation(first, second, float(angles[best]), float(size[best] / size[N_ANGLES // 2]))


def _turn(angle: Tensor) -> Tensor:
    """Matrices (n, 2, 2) that turn a row of two codes."""
    c, s = angle.cos(), angle.sin()
    return torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], -2)
