"""Bootstrap and permutation of images: reconstruction, seeds, scores."""

from itertools import product
from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy.stats import permutation_test, ttest_rel
from torch import Tensor

from probinterp.criticism import comparison as cmp
from probinterp.criticism.comparison.image_weights import image_weights
from probinterp.criticism.comparison.reconstruction import metric_of
from probinterp.inference.reconstruction import reconstruction_statistics
from probinterp.models.base import ActivationBatch

LAYERS, WIDTH = 3, 4


class Sums(NamedTuple):
    """Per-image sums, computed from tokens by a loop."""

    error: Tensor
    squares: Tensor
    total: Tensor
    cosine: Tensor
    n_tokens: Tensor
    image: Tensor


def tokens(n_images=40, noise=0.5, seed=0, effect=0.0):
    """Outputs, reconstructions and the image of each token; images differ in their noise."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.arange(n_images).repeat_interleave(torch.arange(n_images) % 3 + 2)
    y = torch.randn(len(image), LAYERS, WIDTH, generator=generator).double() + 1
    level = noise * (0.5 + torch.rand(n_images, 1, 1, generator=generator).double())[image]
    found = y + level * torch.randn(y.shape, generator=generator).double() + effect
    return y, found, image


def sums_of(y, found, image):
    rows = [(image == i) for i in image.unique()]
    return Sums(
        torch.stack([(y[r] - found[r]).square().sum((0, 2)) for r in rows]),
        torch.stack([y[r].square().sum((0, 2)) for r in rows]),
        torch.stack([y[r].sum(0) for r in rows]),
        torch.stack([torch.cosine_similarity(y[r], found[r], dim=2).sum(0) for r in rows]),
        torch.stack([r.sum() for r in rows]).double(),
        image.unique(),
    )


def nmse(y, found):
    return (y - found).square().sum((0, 2)) / (y - y.mean(0)).square().sum((0, 2))


def test_weights_are_resampled_images_in_chunks_of_any_size():
    whole = torch.cat(list(image_weights(50, 30, 3)))
    parts = torch.cat(list(image_weights(50, 30, 3, chunk_entries=130)))
    assert torch.equal(whole, parts)
    assert whole.sum(1).tolist() == [50] * 30
    drawn = np.random.default_rng(3).integers(50, size=(30, 50))
    assert torch.equal(whole[7], torch.from_numpy(np.bincount(drawn[7], minlength=50)).double())


@pytest.mark.parametrize("metric", ["nmse", "r2", "cosine"])
def test_one_product_equals_a_loop_over_resampled_tokens(metric):
    y, found, image = tokens()
    result = cmp.bootstrap_nmse(sums_of(y, found, image), metric=metric, n_boot=25, seed=2)
    drawn = np.random.default_rng(2).integers(40, size=(25, 40))

    def by_hand(rows):
        value = nmse(y[rows], found[rows])
        if metric == "cosine":
            return torch.cosine_similarity(y[rows], found[rows], dim=2).mean(0)
        return value if metric == "nmse" else 1 - value

    for draw, images in zip(result.draws, drawn, strict=True):
        rows = torch.cat([(image == i).nonzero().flatten() for i in images.tolist()])
        assert torch.allclose(draw, by_hand(rows), rtol=1e-10)
    assert torch.allclose(result.estimate, by_hand(slice(None)), rtol=1e-10)
    assert torch.allclose(result.low, result.draws.quantile(0.025, dim=0))
    assert torch.allclose(result.standard_error, result.draws.std(0))
    assert (result.n, result.baseline) == (40, "resampled")


def test_streamed_statistics_give_the_same_numbers():
    """Sums of the streaming pass, in batches that cut images in two, to 1e-10."""
    y, found, image = tokens()
    batch = ActivationBatch(x=y, inputs=found, image=image, token_type=None)
    streamed = reconstruction_statistics(lambda inputs: inputs, batch, batch_size=7)
    result = cmp.bootstrap_nmse(streamed, n_boot=20)
    assert torch.allclose(result.estimate, nmse(y, found), rtol=0, atol=1e-10)
    assert torch.allclose(
        result.draws, cmp.bootstrap_nmse(sums_of(y, found, image), n_boot=20).draws
    )
    weights = next(image_weights(40, 5, 0))
    assert torch.allclose(metric_of(streamed, weights), streamed.nmse(weights), rtol=1e-12)
    assert torch.allclose(metric_of(streamed, weights, "cosine"), streamed.mean_cosine(weights))


def test_a_frozen_mean_is_the_baseline():
    y, found, image = tokens()
    mean = torch.randn(LAYERS, WIDTH, generator=torch.Generator().manual_seed(9)).double()
    result = cmp.bootstrap_nmse(sums_of(y, found, image), mean=mean, n_boot=10)
    expected = (y - found).square().sum((0, 2)) / (y - mean).square().sum((0, 2))
    assert torch.allclose(result.estimate, expected, rtol=1e-10)
    assert result.baseline == "frozen"
    with pytest.raises(ValueError, match=r"mean must have shape \(3, 4\)"):
        cmp.bootstrap_nmse(sums_of(y, found, image), mean=mean[0])


def test_proxies_are_compared_under_the_same_weights():
    y, found, image = tokens()
    worse = found + 0.1 * (found - y)
    first, second = sums_of(y, worse, image), sums_of(y, found, image)
    paired = cmp.paired_bootstrap(first, second, n_boot=500)
    alone = [cmp.bootstrap_nmse(s, n_boot=500) for s in (first, second)]
    assert torch.allclose(paired.draws, alone[0].draws - alone[1].draws)
    assert (paired.low > 0).all()
    assert (paired.standard_error < alone[0].standard_error).all()
    with pytest.raises(ValueError, match="same images in the same order"):
        cmp.paired_bootstrap(first, sums_of(*tokens(30)))
    with pytest.raises(ValueError, match="same tokens of each image"):
        cmp.paired_bootstrap(first, second._replace(n_tokens=second.n_tokens + 1))


def test_bad_bootstraps_are_refused():
    one = sums_of(*tokens(1))
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        cmp.bootstrap_nmse(one)
    with pytest.raises(ValueError, match="metric must be one of nmse, r2, cosine, got 'mse'"):
        cmp.bootstrap_nmse(sums_of(*tokens()), metric="mse")
    with pytest.raises(ValueError, match="n_boot must be at least 1"):
        cmp.bootstrap_nmse(sums_of(*tokens()), n_boot=0)


def seed_runs(n_seeds, sd, n_images=200):
    """Fits of one method: every seed has its own scale of the error."""
    y, found, image = tokens(n_images)
    scale = 1 + sd * torch.randn(n_seeds, generator=torch.Generator().manual_seed(2))
    return [sums_of(y, y + s.item() * (found - y), image) for s in scale]


def test_seeds_and_images_both_count():
    for sd in (0.0, 0.3):
        runs = seed_runs(4, sd)
        found = cmp.seed_bootstrap(runs, n_boot=4000)
        assert torch.allclose(found.by_seed.mean(0), found.estimate)
        assert torch.allclose(found.seed_error, found.by_seed.std(0) / 2)
        total = (found.seed_error.square() + found.image_error.square()).sqrt()
        assert torch.allclose(found.draws.std(0), total, rtol=0.06)
        alone = cmp.bootstrap_nmse(runs[0], n_boot=4000)
        if sd == 0:
            assert torch.allclose(found.draws, alone.draws)
            assert (found.seed_error == 0).all()
        else:
            assert (found.seed_error > 2 * found.image_error).all()


def test_methods_are_compared_seed_by_seed():
    runs = seed_runs(3, 0.3)
    worse = [r._replace(error=1.1 * r.error) for r in runs]
    found = cmp.seed_bootstrap(worse, against=runs, n_boot=500)
    assert torch.allclose(found.estimate, 0.1 * cmp.seed_bootstrap(runs).estimate)
    assert (found.low > 0).all()
    with pytest.raises(ValueError, match="at least 3 seeds, got 2"):
        cmp.seed_bootstrap(runs[:2])
    with pytest.raises(ValueError, match="against must have 3 seeds too, got 2"):
        cmp.seed_bootstrap(runs, against=runs[:2])


def test_sign_flips_of_few_images_are_enumerated():
    d = [0.3, -0.1, 0.8, 0.5, -0.2, 0.9]
    found = cmp.sign_flip(d)
    assert cmp.sign_flip(torch.tensor(d)).p_value == found.p_value  # ties in single precision
    observed = abs(sum(d)) - 1e-12
    as_large = [abs(np.dot(s, d)) >= observed for s in product((-1, 1), repeat=6)]
    assert (found.exact, found.n_permutations) == (True, 64)
    assert found.p_value.item() == np.mean(as_large)
    expected = permutation_test(
        (np.array(d), np.zeros(6)), lambda a, b: np.mean(a - b), permutation_type="samples"
    ).pvalue
    assert found.p_value.item() == pytest.approx(expected)


def test_random_sign_flips_follow_the_normal_law_and_share_signs():
    d = torch.randn(500, 2, generator=torch.Generator().manual_seed(0)).double() + torch.tensor(
        [0.1, 0.0]
    )
    found = cmp.sign_flip(d)
    for column in range(2):
        alone = cmp.sign_flip(d[:, column])
        assert alone.p_value == found.p_value[column]
        expected = ttest_rel(d[:, column].numpy(), np.zeros(500)).pvalue
        assert alone.p_value.item() == pytest.approx(expected, abs=0.015)
    assert cmp.sign_flip(torch.zeros(80)).p_value == 1
    assert cmp.sign_flip(torch.ones(80), n_permutations=99).p_value == 0.01
    with pytest.raises(ValueError, match="differences must be"):
        cmp.sign_flip(torch.zeros(2, 2, 2))


def test_sign_flips_keep_their_level():
    """400 data sets of skew-free differences: rejected at .05 within three errors."""
    d = torch.randn(40, 400, generator=torch.Generator().manual_seed(5))
    rate = (cmp.sign_flip(d, n_permutations=999).p_value <= 0.05).double().mean().item()
    assert rate == pytest.approx(0.05, abs=3 * (0.05 * 0.95 / 400) ** 0.5)


def test_score_changes_are_paired_t_tests_that_a_verdict_can_judge():
    generator = torch.Generator().manual_seed(3)
    first = torch.rand(300, generator=generator).double()
    second = first - 0.01 + 0.02 * torch.randn(300, generator=generator).double()
    found = cmp.score_change(first, second, name="cosine")
    same = ttest_rel(second.numpy(), first.numpy())
    interval = same.confidence_interval(0.90)
    assert found.bounds(0.05)[:2] == pytest.approx((interval.low, interval.high))
    above = ttest_rel(second.numpy(), first.numpy() - 0.02, alternative="greater").pvalue
    assert found.p_above(-0.02) == pytest.approx(above, rel=1e-6)
    assert found.p_change < 0.001
    said = cmp.verdict(found, margin=0.02)
    assert said.decision == "preserves"
    assert "preserves cosine within 0.02" in str(said)
    assert "it is real, but smaller than the margin" in str(said)
    assert cmp.verdict(found, margin=0.005).decision == "changes"
    noisy = cmp.score_change(first[:8], first[:8].flip(0), name="cosine")
    assert cmp.verdict(noisy, margin=0.02).decision == "not enough data to tell"
    with pytest.raises(ValueError, match="vectors of the same images"):
        cmp.score_change(first, second[:3])


def test_equal_scores_have_no_error():
    scores = torch.rand(50)
    found = cmp.score_change(scores, scores)
    assert (found.p_change, found.p_above(-0.1), found.p_above(0.0), found.p_above(0.1)) == (
        1,
        0.5**50,
        0.5,
        1 - 0.5**50,
    )
    few = cmp.score_change(scores[:3], scores[:3])
    assert cmp.verdict(few, margin=0.1).decision == "not enough data to tell"
    assert cmp.verdict(found, margin=0.1).decision == "preserves"


def test_means_of_images_are_bootstrapped_like_anything_else():
    values = torch.randn(400, 2, 3, generator=torch.Generator().manual_seed(8)).double()
    found = cmp.bootstrap_images(
        lambda w: torch.einsum("wi,ilm->wlm", w, values) / w.sum(1)[:, None, None], 400
    )
    assert torch.allclose(found.estimate, values.mean(0))
    assert torch.allclose(found.standard_error, values.std(0) / 20, rtol=0.06)
    assert found.low.shape == (2, 3)
