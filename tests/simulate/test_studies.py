"""Nonlinear studies: layout, gates, moments against closed forms, reproducibility."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from probinterp import simulate
from probinterp.simulate.counts import negative_binomial
from probinterp.simulate.links import link_covariance, linked
from probinterp.simulate.log_mean_moments import log_mean_moments
from probinterp.simulate.study_process import CountNoise


@pytest.fixture(scope="module")
def truth():
    return simulate.multistudy(seed=0)


@pytest.fixture(scope="module")
def counts():
    return simulate.multistudy(likelihood="negative_binomial", seed=0)


def relative_error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def covariance(x):
    return x.double().T.cov()


def test_link_covariance_is_that_of_quadrature():
    z = torch.linspace(-10, 10, 200_001, dtype=torch.float64)
    weight = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    links = linked(z)
    mean = (links * weight).sum(1)
    expected = (links * weight) @ links.T - mean.outer(mean)
    torch.testing.assert_close(link_covariance(), expected, rtol=0, atol=1e-8)


def test_layout_of_the_defaults(truth):
    assert truth.x.shape == (600, 54)
    assert truth.study.bincount().tolist() == [200, 200, 200]
    assert truth.block.tolist() == [-1, -1, -1, 0, 1, 2]
    assert truth.gate.int().tolist() == [
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 0, 1, 0],
        [1, 1, 1, 0, 0, 1],
    ]
    assert truth.support.sum(1).tolist() == 48 * [1] + 6 * [2]
    assert truth.support[:48].sum(0).tolist() == 6 * [8]
    assert truth.size_factor is None


def test_pairs_of_factors_are_drawn_from_all():
    pairs = torch.cat([simulate.multistudy(n_obs=1, seed=s).support[48:] for s in range(100)])
    share = pairs.float().mean(0)  # 1/3 each, 600 pairs
    assert ((share - 1 / 3).abs() < 4 * math.sqrt(2 / 9 / 600)).all()


def test_sizes_may_differ_between_studies():
    found = simulate.multistudy(2, (30, 5), 1, (0, 3), n_two_parent=2, seed=1)
    assert found.study.bincount().tolist() == [30, 5]
    assert found.block.tolist() == [-1, 1, 1, 1]
    assert found.gate.int().tolist() == [[1, 0, 0, 0], [1, 1, 1, 1]]
    assert found.x.shape == (35, 34)


def test_amplitudes_and_links(within):
    drawn = [simulate.multistudy(n_obs=1, seed=seed) for seed in range(40)]
    sizes = torch.cat([truth.loadings[truth.support] for truth in drawn])  # 40 x 60
    assert sizes.abs().min() >= 1.5
    assert sizes.abs().max() <= 3
    assert within(sizes.abs(), 2.25)
    assert within((sizes > 0).float(), 0.5)
    links = torch.cat([truth.process.link[truth.support] for truth in drawn])
    assert all(within((links == link).float(), 1 / 3) for link in range(3))


def test_codes_are_zero_outside_the_gate_and_standard_normal_inside(truth, within):
    inside = truth.gate[truth.study]
    assert (truth.z[~inside] == 0).all()
    assert within(truth.z[inside], 0)
    assert within(truth.z[inside].square(), 1)


def test_features_are_the_stated_functions(truth):
    j = 50
    first, second = truth.support[j].nonzero().flatten().tolist()
    functions = [lambda v: v, lambda v: np.sin(1.5 * v), lambda v: 1.5 * np.maximum(v, 0)]
    expected = sum(
        float(truth.loadings[j, k])
        * functions[int(truth.process.link[j, k])](truth.z[:, k].numpy())
        for k in (first, second)
    )
    np.testing.assert_allclose(truth.mean[:, j].numpy(), expected, atol=1e-5)


def test_noise_and_features_without_factors(truth, within):
    residual = truth.x - truth.mean
    assert within(residual, 0)
    assert within(residual.square(), 0.25)
    lost = ~(truth.support.float() @ truth.gate.float().T > 0)[:, 0]  # not in the first study
    assert lost.sum() >= 16
    assert (truth.mean[truth.study == 0][:, lost] == 0).all()
    assert within(truth.x[truth.study == 0][:, lost].square(), 0.25)


@pytest.mark.parametrize("study", range(3))
def test_exact_covariance_is_that_of_new_data(truth, study):
    exact = truth.covariance(study)
    new = truth.more(20_000, seed=5)
    assert relative_error(covariance(new.x[new.study == study]), exact) < 0.03
    assert relative_error(truth.process.moments(study, 50_000, 3)[1], exact) < 0.02
    variance = exact.diag() - 0.25
    active = (truth.support & truth.gate[study]).any(1)
    assert torch.equal(variance > 1e-9, active)


def test_count_covariance_is_the_log_normal_one():
    truth = simulate.multistudy(likelihood="negative_binomial", log_effect=0.2, seed=3)
    process = truth.process._replace(link=torch.zeros_like(truth.process.link))
    loadings = (process.loadings * process.gate[1]).double()
    product = loadings @ loadings.T
    mean = (process.level[1].double() + product.diag() / 2).exp()
    expected = mean.outer(mean) * product.expm1()
    expected += torch.diag(mean + mean.square() * product.diag().exp() / 5)
    torch.testing.assert_close(process.covariance(1), expected, rtol=1e-9, atol=1e-7)
    found, spread = process.moments(1, 200_000, 0)
    torch.testing.assert_close(found, mean, rtol=0.01, atol=0)
    assert relative_error(spread, expected) < 0.02
    assert torch.equal(process.covariance(1, 1000, 2), process.moments(1, 1000, 2)[1])


@pytest.mark.parametrize("link", range(3))
def test_moments_of_a_log_mean_are_those_of_scipy(link):
    strengths = torch.zeros(3, 2, 2)
    strengths[link, 0, 0], strengths[link, 1, 0], strengths[0, 1, 1] = 1.05, -0.6, 0.8
    first, second = log_mean_moments(torch.tensor([0.5, 1.0]), strengths)
    w = strengths.double().numpy()

    def expectation(power_first, power_second):
        a = power_first * w[link, 0, 0] + power_second * w[link, 1, 0]

        def integrand(z):
            value = linked(torch.tensor(z, dtype=torch.float64))[link]
            return np.exp(a * float(value)) * norm.pdf(z)

        value = sum(quad(integrand, *ends, epsabs=0)[0] for ends in [(-20, 0), (0, 20)])
        other = (power_second * w[0, 1, 1]) ** 2 / 2  # the second factor is log-normal
        return value * math.exp(0.5 * power_first + power_second + other)

    assert first.tolist() == pytest.approx([expectation(1, 0), expectation(0, 1)], rel=1e-8)
    pairs = [expectation(2, 0), expectation(1, 1), expectation(0, 2)]
    assert second[[0, 0, 1], [0, 1, 1]].tolist() == pytest.approx(pairs, rel=1e-8)


@pytest.mark.parametrize("study", range(3))
def test_count_covariance_of_weak_effects_is_that_of_draws(study):
    truth = simulate.multistudy(likelihood="negative_binomial", log_effect=0.15, seed=2)
    assert relative_error(truth.covariance(study, 200_000, 1), truth.covariance(study)) < 0.02


def test_count_covariance_is_that_of_new_counts():
    """Effects are weak enough for a sample covariance to settle."""
    counts = simulate.multistudy(likelihood="negative_binomial", log_effect=0.15, seed=0)
    process = counts.process._replace(noise=counts.process.noise._replace(library_scale=0.0))
    new = counts._replace(process=process).more(50_000, seed=1)
    assert (new.size_factor == 1).all()
    assert relative_error(covariance(new.x[new.study == 2]), counts.covariance(2)) < 0.05


def test_expected_counts_have_the_stated_mean():
    for seed in range(5):
        process = simulate.multistudy(likelihood="negative_binomial", seed=seed).process
        by_study = [
            log_mean_moments(process.level[m], process._by_link() * process.gate[m])[0].mean()
            for m in range(3)
        ]
        expected = sum(by_study).item() / 3 * math.exp(0.3**2 / 2)
        assert expected == pytest.approx(43, rel=0.01)


def test_counts_have_the_stated_mean_and_dispersion(counts, within):
    assert counts.x.shape == (600, 54)
    assert (counts.x == counts.x.round()).all()
    assert counts.x.min() >= 0
    means = [simulate.multistudy(likelihood="negative_binomial", seed=s).x.mean() for s in range(8)]
    assert within(torch.stack(means), 43)
    assert torch.stack(means).std() < 3
    new = counts.more(5000, seed=2)
    squared = (new.x - new.mean).square() / (new.mean + new.mean.square() / 5)
    assert within(squared, 1)
    assert within(new.size_factor.log(), 0)
    assert within(new.size_factor.log().square(), 0.09)


def test_counts_share_supports_links_and_codes_of_the_gaussian_data(truth, counts):
    assert torch.equal(counts.support, truth.support)
    assert torch.equal(counts.process.link, truth.process.link)
    assert torch.equal(counts.z, truth.z)
    torch.testing.assert_close(counts.loadings, 0.35 * truth.loadings)
    assert isinstance(counts.process.noise, CountNoise)


@pytest.mark.parametrize(("mu", "r"), [(0.5, 0.3), (43.0, 5.0), (2e4, 2.0)])
def test_negative_binomial_draws(mu, r, within):
    n = 100_000
    source = torch.Generator().manual_seed(0)
    x = negative_binomial(torch.full((n, 1), mu), torch.tensor([r]), source).double()
    assert within(x, mu)
    assert within((x - mu).square(), mu + mu**2 / r)
    none = (r / (r + mu)) ** r
    assert (x == 0).double().mean() == pytest.approx(none, abs=4 * math.sqrt(none / n))


def test_a_seed_gives_the_same_bits_and_others_other_numbers(truth):
    again = simulate.multistudy(seed=0)
    assert all(torch.equal(a, b) for a, b in zip(truth[:3], again[:3], strict=True))
    other = simulate.multistudy(seed=1)
    assert not torch.equal(other.support, truth.support)
    assert not torch.equal(other.z, truth.z)


def test_more_data_are_new_and_of_the_same_truth(truth, within):
    new = truth.more((10, 20, 30), seed=0)
    assert new.process is truth.process
    assert new.study.bincount().tolist() == [10, 20, 30]
    assert torch.equal(new.x, truth.more((10, 20, 30), seed=0).x)
    assert not torch.isin(new.z[new.z != 0], truth.z).any()
    assert within(new.x - new.mean, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"likelihood": "poisson"}, "got 'poisson'"),
        ({"n_obs": (200, 200)}, "n_obs must be a number or one for each of 3 studies, got 2"),
        ({"n_obs": (200, 0, 1)}, r"at least 1 in every study, got \[200, 0, 1\]"),
        ({"n_specific": (1, -1, 1)}, r"at least 0 in every study, got \[1, -1, 1\]"),
        ({"n_shared": 0, "n_specific": 0}, "at least one factor"),
        ({"n_shared": 1, "n_specific": 0}, "need two factors, got one"),
        ({"n_studies": 0}, "positive integer, got 0"),
        ({"noise": -1.0}, "must not be negative"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        simulate.multistudy(**options)
