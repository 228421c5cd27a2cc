import math
import sys
from pathlib import Path

import pytest
import torch
from pyro import distributions as dist
from scipy import integrate, stats
from torch.distributions import kl_divergence

from probinterp.inference import BatchData, fit, load, predictive_draws, save
from probinterp.models import CrossLayerTranscoder
from probinterp.models.activation_priors import BernoulliTruncatedNormal
from probinterp.models.token_noise import DiagonalNoise, StudentTNoise
from probinterp.models.transcoder_noise import LayerNoise
from probinterp.spherical_student_t import SphericalStudentT, student_t_log_density

sys.path.append(str(Path(__file__).parent))
from transcoder_cases import D, H, L, N, adam, tokens  # noqa: E402

NOISES = {"layer": LayerNoise, "diagonal": DiagonalNoise, "student": StudentTNoise}
each_noise = pytest.mark.parametrize("name", NOISES)


def made(name, seed=0):
    torch.manual_seed(seed)
    model = CrossLayerTranscoder(
        L, D, H, activation=BernoulliTruncatedNormal(2.0), noise=NOISES[name]()
    )
    model.initialize(tokens(), N)
    model.initialized.fill_(True)
    model.noise.log_scale.data += 0.3 * torch.randn_like(model.noise.log_scale)
    return model.eval()


@each_noise
def test_densities_of_certain_codes_are_those_of_the_distribution(name):
    noise = made(name).noise.double()
    mean, x = torch.randn(2, 7, L, D, dtype=torch.float64)
    unit = torch.tensor([[1.0], [2.0], [0.5]], dtype=torch.float64)
    quadratic = ((x - mean).square() / noise.variance).sum(2)
    found = noise.log_density(quadratic).sum(1) - D * unit.log().sum()
    wanted = noise.distribution(mean * unit, unit).log_prob(x * unit)
    torch.testing.assert_close(found, wanted)


def test_the_student_density_is_that_of_scipy():
    loc, x = torch.randn(2, 3, D, dtype=torch.float64)
    scale = torch.tensor([[0.5], [1.0], [2.0]], dtype=torch.float64)
    found = SphericalStudentT(5.0, loc, scale).log_prob(x).item()
    wanted = sum(
        stats.multivariate_t(m.numpy(), s.item() ** 2 * torch.eye(D).numpy(), df=5.0).logpdf(v)
        for m, s, v in zip(loc, scale, x.numpy(), strict=True)
    )
    assert found == pytest.approx(wanted, rel=1e-9)


def test_draws_of_the_student_distribution_follow_it():
    torch.manual_seed(0)
    law = SphericalStudentT(8.0, torch.randn(2, D).double(), torch.tensor([[0.5], [2.0]]).double())
    draws = law.sample((200_000,))
    torch.testing.assert_close(draws.mean(0), law.mean, atol=0.03, rtol=0)
    torch.testing.assert_close(draws.var(0), law.variance, atol=0, rtol=0.04)
    quadratic = ((draws - law.mean) / law.scale).square().sum(2) / D
    p = stats.kstest(quadratic[:20_000, 0].numpy(), stats.f(D, 8.0).cdf).pvalue
    assert p > 0.001
    assert law.expand(torch.Size((4,))).sample().shape == (4, 2, D)


@pytest.mark.parametrize("expected", [0.1, 3.0, 60.0])
def test_the_bound_is_that_of_the_best_posterior_of_the_scale(expected):
    noise = StudentTNoise(5.0)
    noise.allocate(1, D)
    noise.double()
    scale = noise.log_scale.exp().item()
    shape, rate = (5.0 + D) / 2, (5.0 + expected) / 2
    q, p = dist.Gamma(shape, rate), dist.Gamma(2.5, 2.5)
    log_u = torch.digamma(torch.tensor(shape)) - math.log(rate)
    normal = -D / 2 * math.log(2 * math.pi) - D * math.log(scale)
    wanted = normal + D / 2 * log_u - shape / rate * expected / 2 - kl_divergence(q, p)
    found = noise.log_density(torch.tensor([[expected]], dtype=torch.float64))
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert noise.weight(torch.tensor(expected)).item() == pytest.approx(shape / rate)


def test_the_student_bound_lies_below_the_expected_density():
    model, batch = made("student"), tokens(20)
    exact = model.elbo(batch)["x"].sum()
    torch.manual_seed(0)
    with torch.no_grad():
        law = model.activation.posterior(model.encoder(batch.inputs))
        unit = model.outputs.unit
        found = [
            model.noise.distribution(model.decode(law.sample()), unit).log_prob(batch.x).sum()
            for _ in range(400)
        ]
    found = torch.stack(found)
    error = found.std() / math.sqrt(len(found))
    assert exact < found.mean() + 2 * error
    assert exact > found.mean() - 0.3 * abs(found.mean())


def test_one_far_token_weighs_little():
    noise = StudentTNoise(5.0)
    noise.allocate(1, 3)
    weights = noise.weight(torch.tensor([3.0, 3000.0]))
    assert weights.tolist() == pytest.approx([1.0, 8 / 3005])


@each_noise
def test_predictive_moments_are_those_of_draws(name):
    model, batch = made(name), tokens(20, seed=4)
    wanted = model.predictive(batch.inputs)
    draws = wanted.sample(2000, seed=1)
    scale = wanted.variance.sqrt()
    assert ((draws.mean(0) - wanted.mean) / scale).abs().max() < 6 / math.sqrt(2000)
    ratio = (draws.var(0) / wanted.variance).mean((0, 2))
    torch.testing.assert_close(ratio, torch.ones(L), atol=0.05, rtol=0)
    replicate = next(iter(predictive_draws(model, batch, 1, seed=1))).replicate()
    assert replicate.shape == (20, L, D)


@each_noise
def test_scales_are_those_of_residuals_and_follow_a_change_of_unit(name):
    noise = made(name).noise
    mean_square = torch.rand(L, D) + 0.5
    noise.fit_residuals(mean_square)
    variance = noise.distribution(torch.zeros(1, L, D), torch.ones(L, 1)).variance[0]
    wanted = mean_square if name == "diagonal" else mean_square.mean(1, keepdim=True).expand(L, D)
    torch.testing.assert_close(variance, wanted)
    unit = torch.tensor([[1.0], [2.0], [0.5]])
    noise.rescale(unit)
    scaled = noise.distribution(torch.zeros(1, L, D), torch.ones(L, 1)).variance[0]
    torch.testing.assert_close(scaled, wanted * unit.square())


@each_noise
def test_models_train_fold_and_are_saved(name, tmp_path):
    model, batch = made(name), tokens()
    options = {"batch_size": 50, "optimizer": adam, "progress": False}
    history = fit(model, BatchData(tokens(300)), max_epochs=10, **options)
    assert history.records[-1].loss < history.records[0].loss
    folded = model.fold_normalization()
    torch.testing.assert_close(
        folded.predictive(batch.inputs).variance, model.predictive(batch.inputs).variance
    )
    torch.testing.assert_close(
        folded.elbo(batch)["x"], model.elbo(batch)["x"], rtol=1e-4, atol=1e-3
    )
    save(model, tmp_path / "model")
    assert torch.equal(load(tmp_path / "model").noise.log_scale, model.noise.log_scale)


def test_degrees_of_freedom_must_leave_a_variance():
    with pytest.raises(ValueError, match="df must be more than 2 for a finite variance, got 2"):
        StudentTNoise(2.0)
    infinite = SphericalStudentT(2.0, torch.zeros(1, 2), torch.ones(1, 1)).variance
    assert infinite.isinf().all()
    quadratic = torch.tensor([1.0, 4.0])
    close = student_t_log_density(quadratic, 1e7, 2)
    torch.testing.assert_close(close, -quadratic / 2 - math.log(2 * math.pi), atol=0.2, rtol=0)


def test_the_student_density_integrates_to_one():
    def density(r):
        quadratic = torch.tensor(r * r, dtype=torch.float64)
        return 2 * math.pi * r * student_t_log_density(quadratic, 5.0, 2).exp().item()

    assert integrate.quad(density, 0, math.inf)[0] == pytest.approx(1.0, abs=1e-7)
