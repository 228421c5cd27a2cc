import json
import math

import pytest
import torch
from scipy.stats import false_discovery_control


def test_numbers_with_ties_computed_by_hand(result):
    found = result([2.0], [1.0, 2.0, 2.0, 3.0])  # one above, two tied, one below; U = 1/4
    assert found.n_draws == 4
    assert found.p_value.item() == 0.75
    assert found.p_randomised.item() == (1 + 0.25 * 2) / 4
    assert found.p_rank.item() == (1 + 0.25 * 3) / 5
    assert found.p_two_sided.item() == 2 * (1 + 0.25 * 2 + 1) / 5
    assert found.mc_error.item() == pytest.approx(math.sqrt(0.75 * 0.25 / 4), abs=1e-12)
    assert found.z.item() == 0


def test_numbers_without_ties_computed_by_hand(result):
    found = result([2.5], [1.0, 2.0, 2.0, 3.0])
    assert found.p_value.item() == found.p_randomised.item() == 0.25
    assert found.p_rank.item() == (1 + 0.25) / 5
    assert found.p_two_sided.item() == 2 * 2 / 5
    assert found.mc_error.item() == pytest.approx(math.sqrt(0.25 * 0.75 / 4), abs=1e-12)
    assert found.z.item() == pytest.approx(0.5 / math.sqrt(2 / 3), abs=1e-12)


def test_realised_values_are_compared_draw_by_draw(result):
    found = result([1.0, 5.0, 2.0, 2.0], [2.0, 4.0, 2.0, 1.0])
    assert found.p_value.item() == 0.5
    assert found.z.item() == pytest.approx((2.5 - 2.25) / torch.tensor([2.0, 4, 2, 1]).std())


def test_two_sided_p_is_the_smaller_tail_and_never_zero(result):
    replicates = torch.arange(99.0)
    assert result([-1.0], replicates).p_two_sided.item() == 2 / 100
    assert result([98.5], replicates).p_two_sided.item() == 2 / 100
    assert result([49.0], replicates).p_two_sided.item() == 1


def test_two_sided_p_has_its_level_for_exchangeable_values(result):
    """S + 1 exchangeable values, S = 39: p <= .05 has probability 2 / 40 exactly."""
    values = torch.rand(40, 50_000, dtype=torch.float64)
    found = result(values[:1], values[1:], uniform=torch.rand(50_000))
    rate = (found.p_two_sided <= 0.05).double().mean().item()
    assert rate == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / 50_000))


def test_changing_the_sign_of_d_gives_one_minus_p(result):
    replicates = torch.randn(200, 30, dtype=torch.float64)
    heldout = torch.randn(1, 30, dtype=torch.float64)
    plus, minus = result(heldout, replicates), result(-heldout, -replicates)
    torch.testing.assert_close(minus.p_value, 1 - plus.p_value, rtol=0, atol=1e-15)
    torch.testing.assert_close(minus.z, -plus.z, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        result(-heldout, -replicates, uniform=1 - plus.uniform).p_rank, 1 - plus.p_rank
    )


@pytest.mark.parametrize("transform", [torch.exp, lambda d: d**3, lambda d: 5 * d - 2])
def test_monotone_transforms_of_d_leave_p_alone(result, transform):
    replicates, heldout = torch.randn(100, 20).double(), torch.randn(1, 20).double()
    before, after = (
        result(heldout, replicates),
        result(transform(heldout), transform(replicates)),
    )
    for name in ("p_value", "p_randomised", "p_rank", "p_two_sided", "mc_error"):
        assert torch.equal(getattr(before, name), getattr(after, name))


def test_effect_size_of_replicates_that_do_not_vary(result):
    found = result([[1.0, 2.0, 0.0]], [[1.0, 1.0, 1.0]] * 3)
    assert found.z.tolist() == [0, math.inf, -math.inf]
    assert math.isnan(result([1.0], [2.0]).z)


def test_adjusted_p_is_benjamini_hochberg_of_the_two_sided_p(result):
    replicates = torch.randn(400, 50).double()
    heldout = torch.cat([torch.full((1, 10), 6.0), torch.randn(1, 40)], 1).double()
    found = result(heldout, replicates)
    expected = false_discovery_control(found.p_two_sided.numpy())
    assert found.p_adjusted.numpy() == pytest.approx(expected, abs=0)
    assert result([2.5], [1.0, 2.0]).p_adjusted == result([2.5], [1.0, 2.0]).p_two_sided


def test_summary_is_strict_json_and_keeps_the_numbers(result):
    found = result([[1.0, 2.0]], [[1.0, 1.0]] * 50, notes=("careful",))
    summary = json.loads(json.dumps(found.summary(), allow_nan=False))
    assert summary["z"] == [0.0, None]
    assert summary["p_value"] == [1.0, 0.0]
    assert summary["n_draws"] == 50
    assert summary["heldout"] == [1.0, 2.0]
    assert summary["notes"] == ["careful"]
    assert summary["verdict"] == str(found.verdict())
    scalar = result([2.5], torch.arange(99.0)).summary()
    assert scalar["p_value"] == pytest.approx(96 / 99)


def test_rank_p_is_uniform_for_tied_counts_at_any_number_of_draws(result):
    """200,000 Poisson data sets, 19 draws: Kolmogorov distance below .01."""
    from scipy.stats import kstest

    values = torch.poisson(torch.full((20, 200_000), 2.0))
    found = result(values[:1], values[1:], uniform=torch.rand(200_000, dtype=torch.float64))
    distance = {
        name: kstest(getattr(found, name).numpy(), "uniform").statistic
        for name in ("p_rank", "p_randomised", "p_value")
    }
    assert distance["p_rank"] < 0.01
    assert distance["p_rank"] < distance["p_randomised"] < distance["p_value"]
