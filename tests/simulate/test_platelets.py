"""Synthetic platelets: design, supports, batches, and moments against those of real counts."""

import math

import numpy as np
import pytest
import torch

from probinterp import simulate

SIZES = [24, 38, 38, 55, 40, 35]


@pytest.fixture(scope="module")
def truth():
    return simulate.platelet_like(seed=0)


@pytest.fixture(scope="module")
def large():
    return simulate.platelet_like(n_features=200, seed=1).more(2000, seed=0)


def test_layout(truth):
    assert truth.x.shape == (230, 1000)
    assert truth.study.bincount().tolist() == SIZES
    assert truth.block.tolist() == 5 * [-1] + list(range(6))
    assert truth.gate.sum(1).tolist() == 6 * [6]
    assert (truth.z[~truth.gate[truth.study]] == 0).all()
    assert (truth.x == truth.x.round()).all()
    assert truth.x.min() >= 0


@pytest.mark.parametrize("seed", range(5))
def test_every_factor_has_anchors_and_30_to_80_genes(seed):
    found = simulate.platelet_like(n_obs=2, seed=seed)
    support = torch.cat([found.support, found.batch_support.unsqueeze(1)], dim=1)
    sizes = support.sum(0)
    assert sizes.min() >= 30
    assert sizes.max() <= 80
    alone = support[support.sum(1) == 1]
    assert alone.sum(0).min() >= 2
    effects = found.loadings[found.support].abs()
    assert effects.min() >= 0.35 * 1.5 - 1e-6
    assert effects.max() <= 0.35 * 3 + 1e-6


@pytest.mark.parametrize(
    ("confounded", "design"),
    [
        (0.0, [[8, 8, 8], [12, 13, 13], [13, 12, 13], [19, 18, 18], [13, 14, 13], [12, 11, 12]]),
        (0.5, [[16, 4, 4], [6, 26, 6], [6, 6, 26], [37, 9, 9], [6, 27, 7], [6, 5, 24]]),
        (1.0, [[24, 0, 0], [0, 38, 0], [0, 0, 38], [55, 0, 0], [0, 40, 0], [0, 0, 35]]),
    ],
)
def test_confounding_table(confounded, design):
    found = simulate.platelet_like(n_features=200, confounded=confounded, seed=3)
    assert found.design.tolist() == design
    again = found.more(SIZES, seed=9)
    assert again.design.tolist() == design
    if confounded < 1:
        assert not torch.equal(again.nuisance, found.nuisance)


def test_batches_may_be_one_for_each_group():
    found = simulate.platelet_like(5, 200, n_batches=6, confounded=1.0)
    assert torch.equal(found.nuisance, found.study)


def association(truth, labels):
    """Share of the variance of the batch factor between the levels of the labels."""
    values = truth.batch_activity
    means = torch.stack([values[labels == level].mean() for level in range(int(labels.max()) + 1)])
    return (means[labels].var() / values.var()).item()


def test_batch_factor_follows_batches_and_groups_only_where_confounded(large, within):
    assert association(large, large.nuisance) == pytest.approx(1 / 1.09, abs=0.01)
    assert association(large, large.study) < 0.002
    nested = simulate.platelet_like(2000, 200, confounded=1.0, seed=1)
    assert association(nested, nested.study) == pytest.approx(1 / 1.09, abs=0.01)
    for batch, centre in enumerate([-math.sqrt(1.5), 0.0, math.sqrt(1.5)]):
        assert within(large.batch_activity[large.nuisance == batch], centre)


def test_counts_have_the_stated_mean_and_dispersion(large, within):
    r = large.process.noise.inverse_dispersion
    squared = (large.x - large.mean).square() / (large.mean + large.mean.square() / r)
    assert within(squared, 1)
    assert within(
        simulate.platelet_like(2, 5000).process.noise.inverse_dispersion.log(), math.log(5)
    )
    rows = (large.study == 2) & (large.nuisance == 1)
    j = int(large.batch_support.nonzero()[0])
    log_mean = (
        large.process.predictor(large.z, large.study)[rows, j]
        + large.batch_activity[rows] * large.batches.loadings[j]
        + large.batches.shift[1, j]
    )
    torch.testing.assert_close(
        large.mean[rows, j], large.size_factor[rows] * log_mean.exp(), rtol=1e-4, atol=0
    )


def test_library_sizes(large, within):
    logs = large.library_size.log()
    assert within(logs, math.log(1.9e6))
    assert within((logs - math.log(1.9e6)).square(), 0.49)
    torch.testing.assert_close(large.size_factor, large.library_size / 1.9e6)


def test_means_spread_as_in_real_platelets(data_dir):
    """Log mean counts at the median library, of the genes that a usual filter keeps."""
    anndata = pytest.importorskip("anndata")
    path = data_dir / "tep_gse68086" / "gse68086_counts.h5ad"
    if not path.is_file():
        pytest.skip(f"{path} not found; set PROBINTERP_DATA")
    found = anndata.read_h5ad(path)
    usual = found.obs["batch"].isin(["Batch02", "Batch03", "Batch04"])
    x = found.X[(usual & (found.obs["cancer_type"] != "Hepatobiliary")).to_numpy()]
    x = x[:, np.asarray((x >= 5).mean(0)).ravel() >= 0.9].toarray().astype(float)
    size = x.sum(1) / np.median(x.sum(1))
    real = np.log((x / size[:, None]).mean(0))
    synthetic = simulate.platelet_like(n_features=2741).process.level.mean(0).numpy()
    assert x.shape == (184, 2741)
    assert np.median(x.sum(1)) == pytest.approx(1.9e6, rel=0.02)
    assert synthetic.mean() == pytest.approx(real.mean(), abs=0.1)
    assert synthetic.std() == pytest.approx(real.std(), abs=0.1)
    np.testing.assert_allclose(
        np.quantile(synthetic, [0.1, 0.5, 0.9]), np.quantile(real, [0.1, 0.5, 0.9]), atol=0.2
    )


def test_levels_differ_between_groups_by_the_stated_amount(within):
    level = simulate.platelet_like(2, 3000, study_shift=0.2).process.level
    assert within(level.var(0), 0.04)
    level = simulate.platelet_like(2, 200, study_shift=0.0).process.level
    assert (level == level[0]).all()


def test_a_true_difference_of_activity(within):
    found = simulate.platelet_like(1000, 200, activity_shift=1.5, seed=4)
    first = found.z[:, 0]
    assert within(first[found.study == 0], 1.5)
    assert within(first[found.study != 0], 0)
    assert within(found.z[:, 1], 0)
    assert within(found.more(1000, seed=5).z[:1000, 0], 1.5)


def test_batches_without_effect():
    found = simulate.platelet_like(3, 200, batch_effect=0.0, batch_shift=0.0)
    assert not found.batch_support.any()
    plain = found.process.predictor(found.z, found.study).exp() * found.size_factor.unsqueeze(1)
    torch.testing.assert_close(found.mean, plain)


def test_a_seed_gives_the_same_bits(truth):
    again = simulate.platelet_like(seed=0)
    assert torch.equal(again.x, truth.x)
    assert torch.equal(again.nuisance, truth.nuisance)
    assert not torch.equal(simulate.platelet_like(seed=1).support, truth.support)
    new = truth.more(SIZES, seed=0)
    assert not torch.isin(new.z[new.z != 0], truth.z).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"confounded": 1.2}, r"lie in \[0, 1\], got 3 and 1.2"),
        ({"n_batches": 1}, "at least 2"),
        ({"n_features": 103}, "12 factors, that of batches among them, need 104 genes, got 103"),
        ({"n_obs": (3, 3)}, "one for each of 6 studies, got 2"),
        ({"n_shared": 0, "activity_shift": 1.0}, "needs a shared factor"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        simulate.platelet_like(**options)
