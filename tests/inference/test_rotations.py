import math

import pytest
import torch

from probinterp.inference.rotations import Rotation, find_rotations


def planted(angle, n=2000):
    """Two factors of ten features each, coded by axes that are turned by ``angle``."""
    torch.manual_seed(0)
    z = torch.linalg.qr(torch.randn(n, 3)).Q * n**0.5  # uncorrelated exactly
    effects = torch.zeros(20, 3)
    effects[:10, 0], effects[10:, 1] = torch.rand(2, 10) + 1
    effects[::4, 2] = 0.5
    decoded = z @ effects.mT
    c, s = math.cos(angle), math.sin(angle)
    turned = torch.stack([c * z[:, 0] - s * z[:, 1], s * z[:, 0] + c * z[:, 1], z[:, 2]], 1)
    return z, turned, decoded


def test_sparse_codes_are_left_alone():
    z, _, decoded = planted(0.0)
    assert find_rotations(z, decoded, torch.ones(2000, 3).bool(), [0, 1, 2]) == []


@pytest.mark.parametrize("degrees", [-40, -20, 20, 44])
def test_a_rotation_is_found_and_turned_back(degrees):
    angle = math.radians(degrees)
    z, turned, decoded = planted(angle)
    (found,) = find_rotations(turned, decoded, torch.ones(2000, 3).bool(), [0, 1, 2])
    assert (found.first, found.second) == (0, 1)
    assert found.angle == pytest.approx(angle, abs=math.radians(1.5))
    assert found.gain == pytest.approx(1 / (abs(math.cos(angle)) + abs(math.sin(angle))), abs=0.03)
    back = found.turned(turned)
    r = torch.corrcoef(torch.cat([back, z[:, :2]], 1).mT)[:2, 2:].abs()
    assert r.diagonal().min() > 0.999


def test_columns_of_different_blocks_are_not_compared():
    _, turned, decoded = planted(0.6)
    gate = torch.ones(2000, 3).bool()
    gate[:1000, 1] = False
    assert find_rotations(turned, decoded, gate, [0, 1, 2]) == []


def test_turning_keeps_lengths():
    z = torch.randn(5, 2, dtype=torch.float64)
    torch.testing.assert_close(Rotation(0, 1, 0.3, 0.5).turned(z).norm(dim=1), z.norm(dim=1))
