"""Linear studies: the entries of the loadings and the exact covariances."""

import math

import pytest
import torch

from probinterp import simulate


@pytest.fixture(scope="module")
def truth():
    return simulate.linear_multistudy(seed=0)


def test_sizes_are_those_of_the_scenario(truth):
    assert truth.x.shape == (51, 60)
    assert truth.study.bincount().tolist() == [10, 15, 12, 14]
    assert truth.block.tolist() == [-1, -1, -1, 0, 1, 2, 3]
    assert (truth.z[~truth.gate[truth.study]] == 0).all()


def test_entries_of_the_loadings(truth):
    shared, specific = truth.loadings[:, :3], truth.loadings[:, 3:]
    sizes = shared[shared != 0]
    assert len(sizes) == 60
    assert (sizes < 0).sum() == 30
    assert sizes.abs().min() >= 0.6
    assert sizes.abs().max() <= 1
    assert (specific != 0).sum(0).tolist() == [20, 20, 20, 20]
    drawn = [simulate.linear_multistudy(seed=seed).loadings for seed in range(50)]
    entries = torch.cat([loadings[:, 3:][loadings[:, 3:] != 0] for loadings in drawn])  # U(-1, 1)
    error = 4 / math.sqrt(len(entries))
    assert abs(entries.mean()) < error * math.sqrt(1 / 3)
    assert abs(entries.square().mean() - 1 / 3) < error * math.sqrt(4 / 45)
    by_column = torch.stack([(loadings[:, :3] != 0).sum(0) for loadings in drawn])
    assert (by_column.sum(1) == 60).all()
    assert by_column.float().std() > 1  # places are drawn over the whole matrix


def test_noise_variances_are_uniform_in_every_study():
    variance = torch.stack(
        [simulate.linear_multistudy(seed=seed).process.noise.scale.square() for seed in range(20)]
    )
    assert variance.max() < 1
    assert abs(variance.mean() - 0.5) < 4 / math.sqrt(12 * variance.numel())
    assert not torch.equal(variance[0, 0], variance[0, 1])


@pytest.mark.parametrize("study", range(4))
def test_covariance_is_exact(truth, study):
    common, own = truth.loadings[:, :3].double(), truth.loadings[:, 3 + study :][:, :1].double()
    noise = truth.process.noise.scale[study].double().square().diag()
    sigma = common @ common.T + own @ own.T + noise
    torch.testing.assert_close(truth.covariance(study), sigma, rtol=1e-12, atol=1e-12)
    new = truth.more(20_000, seed=1)
    x = new.x[new.study == study].double()
    whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(sigma), x.T, upper=False)
    assert abs(whitened.mean(1)).max() < 4.5 / math.sqrt(20_000)
    spread = whitened @ whitened.T / 20_000  # the identity, up to 1/sqrt(n)
    assert (spread - torch.eye(60)).abs().max() < 5 * math.sqrt(2 / 20_000)


def test_blocks_may_be_empty_and_sizes_free():
    found = simulate.linear_multistudy(2, 7, 0, (2, 0), n_features=30, share=0.5, seed=2)
    assert found.block.tolist() == [0, 0]
    assert found.x.shape == (14, 30)
    assert (found.loadings != 0).sum() == 30
    noise = found.process.noise.scale[1].double().square().diag()
    torch.testing.assert_close(found.covariance(1), noise, rtol=1e-12, atol=0)


def test_a_seed_gives_the_same_bits(truth):
    assert torch.equal(simulate.linear_multistudy(seed=0).x, truth.x)
    assert not torch.equal(simulate.linear_multistudy(seed=1).loadings, truth.loadings)


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_share_must_be_one(share):
    with pytest.raises(ValueError, match=r"share must lie in \(0, 1\]"):
        simulate.linear_multistudy(share=share)


def test_studies_must_match():
    with pytest.raises(ValueError, match="one for each of 3 studies, got 4"):
        simulate.linear_multistudy(3)
