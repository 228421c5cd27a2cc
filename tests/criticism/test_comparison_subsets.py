"""Ranks of sets, curves, layers and classes."""

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.stats import norm

from probinterp.criticism import comparison as cmp


def test_the_planted_best_of_all_495_sets_has_the_smallest_p():
    """Values add up over layers, so that the four largest layers are the best set of four."""
    worth = torch.randn(12, generator=torch.Generator().manual_seed(0)).double()
    planted = tuple(sorted(worth.topk(4).indices.tolist()))
    values = {kept: sum(worth[list(kept)].tolist()) for kept in combinations(range(12), 4)}
    found = cmp.subset_rank(values, planted)
    assert (found.rank, found.n_subsets, found.best) == (1, 495, planted)
    assert found.p_value == found.smallest_p == 1 / 495
    worst = tuple(sorted((-worth).topk(4).indices.tolist()))
    assert cmp.subset_rank(values, worst).p_value == 1
    assert "Rank 1 among all 495 sets" in str(found)


def test_ties_count_as_at_least_as_good():
    found = cmp.subset_rank([0.5, 0.7, 0.5, 0.2], 0)
    assert (found.rank, found.p_value, found.best, found.best_value) == (3, 0.75, 1, 0.7)
    sample = cmp.subset_rank(
        {"chosen": 0.9, **{i: 0.01 * i for i in range(100)}}, "chosen", complete=False
    )
    assert sample.p_value == pytest.approx((1 + 10) / (1 + 100))
    assert "among 101 sets" in str(sample)


def test_bad_sets_are_refused():
    with pytest.raises(KeyError, match=r"set \(1, 2\) is not among the 1 sets"):
        cmp.subset_rank({(0, 1): 0.5}, (1, 2))
    with pytest.raises(ValueError, match="one value a set"):
        cmp.subset_rank(torch.zeros(2, 2), 0)
    with pytest.raises(ValueError, match="must be finite"):
        cmp.subset_rank([0.1, float("nan")], 0)


def planted_curve(n=2000, seed=0, power=1.0):
    """Images recognised at step t with probability (1 - t / 4) ** power."""
    uniform = torch.rand(n, generator=torch.Generator().manual_seed(seed))
    return torch.stack([uniform < (1 - t / 4) ** power for t in range(5)])


def test_a_curve_and_its_area_by_hand():
    correct = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 1], [0, 0, 0, 1]])
    found = cmp.curve(correct, [1.0, 0.5, 0.0])
    assert found.accuracy.tolist() == [1, 0.75, 0.25]
    assert found.auc == pytest.approx((1.75 + 1.0) / 4)
    rising = cmp.curve(correct.flip(0), [0.0, 0.5, 1.0])
    assert rising.auc == pytest.approx(found.auc)
    assert torch.allclose(rising.auc_draws, found.auc_draws)
    assert cmp.curve(correct).auc == found.auc


def test_bands_are_those_of_a_loop_over_resampled_images():
    correct = planted_curve(300)
    found = cmp.curve(correct, n_boot=400, seed=5)
    drawn = np.random.default_rng(5).integers(300, size=(400, 300))
    accuracy = torch.stack([correct[:, row].double().mean(1) for row in torch.from_numpy(drawn)])
    assert torch.allclose(found.low, accuracy.quantile(0.025, dim=0))
    assert torch.allclose(found.high, accuracy.quantile(0.975, dim=0))
    areas = accuracy @ torch.tensor([0.125, 0.25, 0.25, 0.25, 0.125]).double()
    assert torch.allclose(found.auc_draws, areas)
    error = norm.ppf(0.975) * correct[2].double().std().item() / 300**0.5
    assert (found.high - found.low)[2].item() / 2 == pytest.approx(error, rel=0.15)


def test_curves_of_the_same_images_are_compared_in_pairs():
    slow, fast = cmp.curve(planted_curve()), cmp.curve(planted_curve(power=1.1))
    found = cmp.curve_difference(slow, fast)
    assert found.difference == pytest.approx(slow.auc - fast.auc)
    assert found.interval.low > 0
    assert found.interval.half_width < slow.auc_interval.half_width / 3
    with pytest.raises(ValueError, match="same images and resamples"):
        cmp.curve_difference(slow, cmp.curve(planted_curve(100)))
    areas = {"contribution": 0.4, "a": 0.5, "b": 0.6, "c": 0.3}
    assert cmp.curve_rank(areas, "contribution", smaller_is_better=True).rank == 2
    assert cmp.curve_rank(areas, "contribution").rank == 3


def test_bad_curves_are_refused():
    with pytest.raises(ValueError, match="steps by images"):
        cmp.curve([1, 0, 1])
    with pytest.raises(ValueError, match="rise or fall over the 3 steps"):
        cmp.curve(torch.ones(3, 4), [0.0, 1.0, 0.5])
    with pytest.raises(ValueError, match="at least 2 images"):
        cmp.curve(torch.ones(3, 1))


def test_the_top_layer_against_the_others():
    """Without layer 2 a quarter of the images is lost, without another one a few."""
    generator = torch.Generator().manual_seed(1)
    easy = torch.rand(400, generator=generator)
    correct = {layer: easy > 0.1 + 0.01 * layer for layer in (0, 1, 3)}
    correct[2] = easy > 0.35
    found = cmp.layer_contrasts(correct, 2)
    assert found.others == (0, 1, 3)
    expected = [(correct[k].double() - correct[2].double()).mean().item() for k in (0, 1, 3)]
    assert found.difference.tolist() == pytest.approx(expected)
    lost = int((correct[0] & ~correct[2]).sum())
    assert found.p_value[0].item() == cmp.mcnemar(0, lost)
    assert found.p_adjusted.tolist() == cmp.holm(found.p_value).tolist()
    assert (found.rank, cmp.layer_contrasts(correct, 0).rank) == (1, 4)
    with pytest.raises(KeyError, match="layer 9"):
        cmp.layer_contrasts(correct, 9)


def simulated_classes(effects, n=400, q=0.1, seed=0):
    """Images of each class with a given change of accuracy."""
    generator = np.random.default_rng(seed)
    network, proxy, labels = [], [], []
    for label, effect in enumerate(effects):
        shares = ((q + effect) / 2, (q - effect) / 2, 0.6, 0.4 - q)
        kind = generator.choice(4, size=n, p=shares)
        network.append((kind == 1) | (kind == 2))
        proxy.append((kind == 0) | (kind == 2))
        labels.append(np.full(n, label))
    return tuple(np.concatenate(v) for v in (network, proxy, labels))


def test_class_effects_are_shrunk_towards_their_mean():
    effects = np.random.default_rng(4).normal(0.01, 0.03, size=100).clip(-0.09, 0.09)
    found = cmp.class_effects(*simulated_classes(effects))
    truth = torch.from_numpy(effects)
    error = (found.shrunken - truth).square().mean()
    assert error < 0.8 * (found.raw - truth).square().mean()
    assert found.common_sd == pytest.approx(0.03, abs=0.008)
    assert found.common_mean == pytest.approx(0.01, abs=0.008)
    inside = ((found.low <= truth) & (truth <= found.high)).double().mean()
    assert inside.item() == pytest.approx(0.95, abs=0.06)
    assert found.raw.abs().max() > found.shrunken.abs().max()


def test_classes_without_differences_are_pulled_together_and_none_is_reported():
    found = cmp.class_effects(
        *simulated_classes(np.zeros(100), seed=3), names=[f"c{i}" for i in range(100)]
    )
    assert found.common_sd < 0.006
    assert (found.q_value > 0.05).all()
    assert found.labels[:2] == ("c0", "c1")
    assert found.shrunken.std() < 0.2 * found.raw.std()
    rows = found.rows()
    assert len(rows) == 100
    assert abs(rows[0]["shrunken"]) == found.shrunken.abs().max().item()


def test_counts_and_p_values_of_a_class():
    network, proxy, labels = simulated_classes([0.05, -0.05], n=200)
    found = cmp.class_effects(network, proxy, torch.from_numpy(labels))
    first = cmp.paired_accuracy(network[:200], proxy[:200])
    assert (found.network_only[0].item(), found.proxy_only[0].item()) == first.cells[1:3]
    assert found.p_value[0].item() == first.p_midp
    assert found.raw[0].item() == pytest.approx(first.difference)
    with pytest.raises(ValueError, match=r"labels must have shape \(400,\)"):
        cmp.class_effects(network, proxy, labels[:5])


def test_the_common_spread_has_the_largest_likelihood():
    found = cmp.class_effects(*simulated_classes(np.linspace(-0.08, 0.08, 30)))
    n = found.n.double().numpy() + 2
    gained, lost = found.proxy_only.numpy(), found.network_only.numpy()
    change = (gained - lost) / n
    variance = ((gained + lost + 1) / n - change**2) / n

    def likelihood(mean, sd):
        return norm.logpdf(change, mean, np.sqrt(sd**2 + variance)).sum()

    best = likelihood(found.common_mean, found.common_sd)
    for mean in (-0.002, 0.002):
        assert likelihood(found.common_mean + mean, found.common_sd) < best
    for factor in (0.95, 1.05):
        assert likelihood(found.common_mean, factor * found.common_sd) < best
