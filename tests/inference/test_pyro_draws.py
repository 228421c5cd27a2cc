import math

import numpy as np
import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from pyro.ops.stats import effective_sample_size
from pyro.optim import Adam
from scipy import stats

from probinterp.criticism import PredictiveDraw, pop_pc
from probinterp.criticism.discrepancies import (
    chi_square,
    feature_variance,
    mean,
    mean_negative_log_likelihood,
)
from probinterp.inference import pyro_draws
from probinterp.inference.effective_size import effective_size


@pytest.fixture(autouse=True)
def _empty_store():
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


def location(n, x=None):
    """Normal data with unknown mean: posterior N(sum / (n + .01), 1 / (n + .01))."""
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("units", n):
        return pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def intercepts(n, x=None):
    """One latent per unit: x_i given mu has variance 2."""
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("units", n):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal(mu + z, 1.0).expand([n]), obs=x)


def inferred(x, unknowns):
    return {"z": (x[:, 0] - unknowns["mu"]) / 2}


def exact_posterior(x_obs, n_draws):
    precision = len(x_obs) + 0.01
    noise = torch.randn(n_draws, dtype=x_obs.dtype) / math.sqrt(precision)
    return {"mu": x_obs.sum() / precision + noise}


def test_replicates_and_likelihood_are_those_of_the_program():
    samples = {"mu": torch.tensor([1.0, 2.0, 6.0])}
    draws = pyro_draws(location, samples=samples, args=(4000,))
    assert len(draws) == 3
    assert draws.local is None
    assert not draws.point_estimate
    for mu, draw in zip(samples["mu"], draws, strict=True):
        assert isinstance(draw, PredictiveDraw)
        x = draw.replicate()
        assert x.shape == (4000, 1)
        assert x.mean().item() == pytest.approx(mu.item(), abs=5 / math.sqrt(4000))
        law = draw.likelihood(x)
        expected = stats.norm(mu.item()).logpdf(x.numpy())[:, 0]
        assert law.log_prob(x).numpy() == pytest.approx(expected, rel=1e-5)
        assert law.mean.unique().tolist() == [mu.item()]
        assert law.variance.unique().tolist() == [1.0]
        assert (law.batch_shape, law.event_shape) == ((4000,), (1,))
    assert draws.reference.likelihood(x).mean[0].item() == 3.0


def test_same_seed_same_replicates_whatever_the_order():
    def replicates(seed):
        samples = {"mu": torch.arange(4.0)}
        draws = pyro_draws(location, samples=samples, args=(5,), seed=seed)
        return torch.stack([draw.replicate() for draw in reversed(list(draws))])

    assert torch.equal(replicates(0), replicates(0))
    assert not torch.equal(replicates(0), replicates(1))
    assert len(replicates(0).unique()) == 20


def test_data_inside_the_program_are_not_replicated():
    """Data of the site are ignored, those of another observed site kept as a covariate."""

    def model(n):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("units", n):
            depth = pyro.sample("depth", dist.Normal(0.0, 1.0), obs=100.0 * torch.arange(n))
            pyro.sample("x", dist.Normal(mu + depth, 1e-3), obs=torch.zeros(n))

    conditioned = pyro.condition(model, data={"x": torch.ones(4)})
    for program in (model, conditioned):
        draws = pyro_draws(program, samples={"mu": torch.zeros(2)}, args=(4,))
        x = next(iter(draws)).replicate()
        assert x[:, 0].tolist() == pytest.approx([0, 100, 200, 300], abs=0.01)


@pytest.mark.parametrize("units_last", [False, True])
def test_rows_are_units_whatever_the_order_of_the_plates(units_last):
    """Three units, two features, a scale per feature; obs_plate says which is which."""
    first, second = (-1, -2) if units_last else (-2, -1)

    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        units, features = pyro.plate("units", 3, dim=first), pyro.plate("features", 2, dim=second)
        with features:
            scale = pyro.sample("scale", dist.Gamma(1.0, 1.0))
        with units, features:
            pyro.sample("x", dist.Normal(mu, scale))

    scale = torch.tensor([1.0, 3.0]).expand(4, 2)
    samples = {"mu": torch.zeros(4), "scale": scale.unsqueeze(-1) if units_last else scale}
    with pytest.raises(ValueError, match=r"several plates, \['features', 'units'\]; pass obs_pl"):
        pyro_draws(model, samples=samples)
    draw = next(iter(pyro_draws(model, samples=samples, obs_plate="units")))
    x = torch.tensor([[0.5, 1.0], [2.0, -1.0], [0.0, 3.0]])
    law = draw.likelihood(x)
    expected = stats.norm(0, [1.0, 3.0]).logpdf(x.numpy()).sum(1)
    assert law.log_prob(x).numpy() == pytest.approx(expected, rel=1e-6)
    assert law.variance.tolist() == [[1.0, 9.0]] * 3
    assert draw.replicate().shape == law.sample().shape == (3, 2)
    assert law.sample((5,)).shape == (5, 3, 2)


def test_events_and_masks_of_the_observed_site():
    keep = torch.tensor([True, False])

    def model():
        rho = pyro.sample("rho", dist.Uniform(-1.0, 1.0))
        covariance = torch.eye(3) + rho * (1 - torch.eye(3))
        with pyro.plate("units", 2), pyro.poutine.mask(mask=keep):
            pyro.sample("x", dist.MultivariateNormal(torch.zeros(3), covariance))

    draws = pyro_draws(model, samples={"rho": torch.tensor([0.5, 0.5])})
    x = torch.tensor([[1.0, 2.0, 0.0], [1.0, 1.0, 1.0]])
    expected = stats.multivariate_normal(cov=0.5 * np.eye(3) + 0.5).logpdf(x[0].numpy())
    assert next(iter(draws)).likelihood(x).log_prob(x).tolist() == pytest.approx([expected, 0])


def test_units_without_a_plate():
    def model(design):
        beta = pyro.sample("beta", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(design @ beta, 1.0).to_event(1))

    design = torch.randn(5, 2)
    draws = pyro_draws(model, samples={"beta": torch.ones(3, 2)}, args=(design,))
    x = torch.zeros(5, 1)
    law = next(iter(draws)).likelihood(x)
    assert law.mean[:, 0].tolist() == pytest.approx(design.sum(1).tolist())
    assert law.log_prob(x).shape == (5,)
    samples = {"beta": torch.ones(3, 2)}
    with pytest.raises(ValueError, match=r"\['beta'\] have as many entries as there are units"):
        pyro_draws(model, samples=samples, args=(design[:2],))
    named = pyro_draws(model, samples=samples, args=(design[:2],), local_sites=())
    assert next(iter(named)).replicate().shape == (2, 1)


def test_a_joint_density_of_all_units_can_only_replicate():
    def process():
        scale = pyro.sample("scale", dist.Gamma(1.0, 1.0))
        pyro.sample("x", dist.MultivariateNormal(torch.zeros(4), scale * torch.eye(4)))

    draws = pyro_draws(process, samples={"scale": torch.ones(30)})
    assert pop_pc(draws, torch.ones(4, 1), mean).n_draws == 30
    with pytest.raises(ValueError, match="one density for all units.*only statistics"):
        pop_pc(draws, torch.ones(4, 1), mean_negative_log_likelihood)


def test_counts_become_floating_point():
    def model():
        rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
        with pyro.plate("units", 3):
            pyro.sample("x", dist.Categorical(torch.softmax(rate * torch.arange(3.0), 0)))

    draw = next(iter(pyro_draws(model, samples={"rate": torch.ones(2)})))
    x = draw.replicate()
    assert x.dtype == torch.float32
    expected = torch.log_softmax(torch.arange(3.0), 0)[x[:, 0].long()]
    assert draw.likelihood(x).log_prob(x).tolist() == pytest.approx(expected.tolist())


def test_local_latents_are_redrawn_from_the_prior():
    """The samples hold the latents of 7 fitted units; replicates are of 4000 new ones."""
    samples = {"mu": torch.zeros(3), "z": torch.full((3, 7), 50.0)}
    draws = pyro_draws(intercepts, samples=samples, args=(4000,))
    assert draws.local == "prior"
    for draw in draws:
        assert draw.replicate().var().item() == pytest.approx(2, abs=5 * 2 * math.sqrt(2 / 4000))


def test_scoring_needs_latents_inferred_from_the_data():
    samples = {"mu": torch.zeros(40)}
    draws = pyro_draws(intercepts, samples=samples, args=(6,))
    x = torch.linspace(-2, 2, 6).unsqueeze(1)
    assert pop_pc(draws, x, mean).local == "prior"
    for kind in ("plugin", "predictive", "realised"):
        with pytest.raises(ValueError, match=r"local latents \['z'\].*Pass infer_local="):
            pop_pc(draws, x, mean_negative_log_likelihood, kind=kind)
    scoring = pyro_draws(intercepts, samples=samples, args=(6,), infer_local=inferred)
    for draw in (scoring.reference, *list(scoring)[:2]):
        assert draw.likelihood(x).mean[:, 0].tolist() == pytest.approx((x[:, 0] / 2).tolist())
    wrong = pyro_draws(intercepts, samples=samples, args=(6,), infer_local=lambda x, u: {"y": x})
    with pytest.raises(ValueError, match=r"infer_local must return values of \['z'\], got \['y'\]"):
        wrong.reference.likelihood(x)


def test_latents_of_an_observed_part_score_only_where_they_do_not_replicate():
    samples = {"mu": torch.zeros(60), "z": torch.arange(6.0).expand(60, 6)}
    draws = pyro_draws(intercepts, samples=samples, args=(6,), local="observed", n_reference=20)
    assert (len(draws), len(draws.reference_draws)) == (40, 20)
    x = torch.arange(6.0).unsqueeze(1)
    result = pop_pc(draws, x, chi_square)
    assert (result.local, result.heldout.item()) == ("observed", 0.0)
    assert pop_pc(draws, x, chi_square, kind="predictive").heldout.item() == 0.0
    assert pop_pc(draws, x, mean).z.abs().item() < 1
    with pytest.raises(ValueError, match="no way to infer them from the data they score"):
        pop_pc(draws, x, chi_square, kind="realised")


def test_new_groups_are_local_when_they_are_named():
    def model(group):
        tau = pyro.sample("tau", dist.Gamma(1.0, 1.0))
        with pyro.plate("groups", 500):
            theta = pyro.sample("theta", dist.Normal(0.0, tau))
        with pyro.plate("units", len(group)):
            pyro.sample("x", dist.Normal(theta[group], 1e-3))

    samples = {"tau": torch.full((3,), 5.0), "theta": torch.zeros(3, 500)}
    group = torch.arange(500)
    within = next(iter(pyro_draws(model, samples=samples, args=(group,))))
    assert within.replicate().std().item() < 0.01
    new = next(iter(pyro_draws(model, samples=samples, args=(group,), local_sites=["theta"])))
    assert new.replicate().std().item() == pytest.approx(5, rel=0.2)


def test_guides_of_ones_own():
    def guide(n):
        scale = pyro.param("scale", torch.tensor(0.1))
        pyro.sample("mu", dist.Normal(pyro.param("mean", torch.tensor(4.0)), scale))

    guide(5)
    before = {name: value.clone() for name, value in pyro.get_param_store().items()}
    draws = pyro_draws(location, guide=guide, args=(5,), n_draws=400, n_reference=3)
    x = torch.zeros(5, 1)
    means = torch.stack([draw.likelihood(x).mean[0, 0] for draw in draws])
    assert means.mean().item() == pytest.approx(4, abs=5 * 0.1 / 20)
    assert means.std().item() == pytest.approx(0.1, rel=0.2)
    assert draws.reference.likelihood(x).mean[0].item() == pytest.approx(4, abs=5 * 0.1 / 16)
    assert len(draws.reference_draws) == 3
    assert not draws.point_estimate
    assert draws.n_effective is None
    after = dict(pyro.get_param_store().items())
    assert {n: v.item() for n, v in after.items()} == {n: v.item() for n, v in before.items()}


@pytest.mark.parametrize(("make", "certain"), [(AutoNormal, False), (AutoDelta, True)])
def test_automatic_guides(make, certain):
    """Fitted to 7 units with their latents, asked for 20 new ones."""
    guide, x_obs = make(intercepts), torch.full((7,), 3.0)
    svi = SVI(intercepts, guide, Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(600):
        svi.step(7, x_obs)
    draws = pyro_draws(intercepts, guide=guide, args=(20,), n_draws=50, infer_local=inferred)
    assert draws.point_estimate == certain
    assert len({draw.unknowns["mu"].item() for draw in draws}) == (1 if certain else 50)
    assert draws.reference.unknowns["mu"].item() == pytest.approx(3, abs=0.4)
    assert set(draws.reference.unknowns) == {"mu"}
    assert next(iter(draws)).replicate().shape == (20, 1)


def test_a_guide_that_was_never_fitted_is_refused():
    with pytest.raises(ValueError, match="the AutoNormal was never fitted"):
        pyro_draws(location, guide=AutoNormal(location), args=(5,), n_draws=3)


def test_a_chain_fitted_by_nuts():
    x_obs = torch.randn(40) + 1
    chain = MCMC(NUTS(location), num_samples=150, warmup_steps=100, disable_progbar=True)
    chain.run(40, x_obs)
    draws = pyro_draws(location, samples=chain.get_samples(), args=(10,), n_obs=40)
    assert draws.reference.unknowns["mu"].item() == pytest.approx(x_obs.mean().item(), abs=0.1)
    assert 10 < draws.n_effective <= 150
    good = pop_pc(draws, torch.randn(10, 1) + 1, mean_negative_log_likelihood)
    bad = pop_pc(draws, 3 * torch.randn(10, 1) + 1, mean_negative_log_likelihood)
    assert good.p_two_sided.item() > 0.01
    assert bad.p_value.item() == 0
    assert good.n_obs == 40


def test_effective_size_of_an_autoregressive_chain():
    r"""Correlation .8: the effective share is (1 - .8) / (1 + .8) = 1/9."""
    chains = np.zeros((4, 5000))
    noise = np.random.default_rng(0).normal(size=chains.shape)
    for t in range(1, 5000):
        chains[:, t] = 0.8 * chains[:, t - 1] + noise[:, t]
    samples = {"mu": torch.as_tensor(chains.reshape(-1)).float()}
    draws = pyro_draws(location, samples=samples, args=(5,), n_chains=4)
    assert draws.n_effective == pytest.approx(20000 / 9, rel=0.15)
    assert pyro_draws(location, samples=samples, args=(5,), n_draws=500).n_effective == 500


def test_effective_size_agrees_with_pyro():
    """Pyro divides autocovariances at lag k by L - k instead of L: the same in long chains."""
    chains = torch.randn(3, 4000, 4)
    for t in range(1, 4000):
        chains[:, t] += 0.5 * chains[:, t - 1]
    expected = effective_sample_size(chains[:, :, :1].double(), chain_dim=0, sample_dim=1)
    assert effective_size(chains)[0].item() == pytest.approx(expected.item(), rel=0.01)
    assert effective_size(torch.ones(1, 50, 2)).isnan().all()
    assert effective_size(torch.randn(2, 3, 2)).isnan().all()


def test_fewer_draws_are_spread_over_the_chain():
    samples = {"mu": torch.arange(100.0)}
    draws = pyro_draws(location, samples=samples, args=(5,), n_draws=8, n_reference=2)
    kept = [draw.unknowns["mu"].item() for draw in draws]
    apart = [draw.unknowns["mu"].item() for draw in draws.reference_draws]
    assert sorted(kept + apart) == [0, 11, 22, 33, 44, 55, 66, 77, 88, 99]
    assert apart == [0, 55]


def test_no_reference_where_the_mean_is_no_value():
    def model(n):
        flip = pyro.sample("flip", dist.Bernoulli(0.5))
        with pyro.plate("units", n):
            pyro.sample("x", dist.Normal(flip, 1.0))

    draws = pyro_draws(model, samples={"flip": torch.tensor([0.0, 1.0, 1.0])}, args=(4,))
    assert draws.reference is None
    result = pop_pc(draws, torch.zeros(4, 1), mean_negative_log_likelihood)
    assert result.reference == "the first draw, set aside"


@pytest.mark.slow
def test_p_values_are_uniform_with_the_exact_posterior():
    """200 data sets of a correct model with local latents, 20 observed and 20 held-out units."""
    p = {mean_negative_log_likelihood: [], feature_variance: []}
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(40, generator=generator) * math.sqrt(2)
        precision = 10 + 0.01
        centre = x[:20].sum() / 2 / precision
        samples = {"mu": centre + torch.randn(59, generator=generator) / math.sqrt(precision)}
        draws = pyro_draws(intercepts, samples=samples, args=(20,), infer_local=inferred, seed=seed)
        for discrepancy, values in p.items():
            result = pop_pc(draws, x[20:, None], discrepancy, seed=seed)
            values.append(result.p_rank.item())
    for values in p.values():
        assert stats.kstest(values, "uniform").statistic < 0.156


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({}, TypeError, "needs either a guide or samples"),
        ({"samples": {"nu": torch.zeros(3)}}, ValueError, r"no values of \['mu'\], which replic"),
        ({"samples": {"mu": torch.zeros(3, 2)}}, ValueError, r"shape of the program's site, \(\)"),
        ({"samples": {"mu": torch.zeros(0)}}, ValueError, "same number of draws, at least 1"),
        ({"samples": {"mu": torch.zeros(3)}, "n_draws": 4}, ValueError, "there are 3 samples"),
        ({"samples": {"mu": torch.zeros(3)}, "n_draws": 0}, ValueError, "n_draws must be an int"),
        ({"samples": {"mu": torch.zeros(3)}, "n_chains": 2}, ValueError, "n_chains must divide"),
        ({"samples": {"mu": torch.zeros(3)}, "obs_site": "y"}, KeyError, "no site 'y'; its sites"),
        ({"samples": {"mu": torch.zeros(3)}, "obs_plate": "y"}, KeyError, "not in a plate 'y'"),
        ({"samples": {"mu": torch.zeros(3)}, "local_sites": ["y"]}, KeyError, r"names \['y'\]"),
        ({"samples": {"mu": torch.zeros(3)}, "local": "new"}, ValueError, "local must be one of"),
        ({"guide": location}, ValueError, "n_draws must be given with a guide"),
    ],
)
def test_bad_arguments_are_refused(options, error, text):
    with pytest.raises(error, match=text):
        pyro_draws(location, args=(5,), **options)


def test_data_of_another_shape_are_refused():
    draws = pyro_draws(location, samples={"mu": torch.zeros(3)}, args=(5,))
    with pytest.raises(ValueError, match=r"shape of the replicates, \(5, 1\), got \(4, 1\)"):
        draws.reference.likelihood(torch.zeros(4, 1))
