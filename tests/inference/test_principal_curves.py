import pytest
import torch
from scipy.stats import norm

from probinterp.inference.principal_curves import (
    normal_scores,
    principal_curve,
    smooth,
    smooth_residual,
)

NOISE = 0.5


def folded(n=600, seed=0):
    """Seven features in sin 1.5 z and one in z: the leading component is two-to-one in z."""
    torch.manual_seed(seed)
    z = torch.randn(n)
    signal = torch.cat([2.2 * (1.5 * z).sin().unsqueeze(1).expand(-1, 7), 2.0 * z.unsqueeze(1)], 1)
    return z, signal + NOISE * torch.randn_like(signal)


def correlation(a, b):
    return float(torch.stack([a, b]).corrcoef()[0, 1].abs())


def test_normal_scores_are_quantiles_of_the_ranks():
    values = torch.tensor([3.0, -1.0, 10.0, 0.5], dtype=torch.float64)
    expected = norm.ppf([0.625, 0.125, 0.875, 0.375])
    torch.testing.assert_close(normal_scores(values), torch.from_numpy(expected))


@pytest.mark.parametrize("seed", range(5))
def test_a_curve_unfolds_what_the_leading_component_folds(seed):
    z, y = folded(seed=seed)
    leading = torch.linalg.svd(y - y.mean(0), full_matrices=False)[0][:, 0]
    assert correlation(normal_scores(leading), z) < 0.9
    curve = principal_curve(y)
    assert correlation(curve.score, z) > 0.98
    # of 8 features one degree of freedom an observation goes into the position on the curve
    assert curve.residual == pytest.approx(NOISE**2 * 7 / 8, rel=0.1)
    assert curve.residual == pytest.approx(smooth_residual(y - y.mean(0), curve.score))


def test_a_straight_cloud_gives_its_first_component():
    torch.manual_seed(1)
    z = torch.randn(400)
    y = z.unsqueeze(1) * torch.tensor([3.0, -2.0, 1.0]) + 0.2 * torch.randn(400, 3)
    assert correlation(principal_curve(y).score, z) > 0.99


def test_turning_and_shifting_the_points_changes_no_residual():
    _, y = folded()
    turn = torch.linalg.qr(torch.randn(8, 8)).Q
    assert principal_curve(y @ turn + 3).residual == pytest.approx(
        principal_curve(y).residual, rel=1e-2
    )


def test_a_start_is_used():
    z, y = folded()
    assert principal_curve(y, z.unsqueeze(1)).residual <= principal_curve(y).residual


def test_smooth_reproduces_piecewise_linear_functions():
    score = torch.linspace(-2.5, 2.5, 500, dtype=torch.float64)
    y = torch.stack([score, 2 - score, score.abs()], 1)  # a kink at a place without a knot
    fitted = smooth(y, score)
    torch.testing.assert_close(fitted[:, :2], y[:, :2], atol=1e-8, rtol=0)
    assert (fitted[:, 2] - y[:, 2]).square().mean() < 2e-3
