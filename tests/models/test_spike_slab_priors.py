import math
import sys
from pathlib import Path

import pyro
import pytest
import torch
from pyro import poutine
from scipy import optimize
from torch.distributions import kl_divergence

from probinterp.inference import BatchData, fit, load, save
from probinterp.inference.elbo import elbo_terms
from probinterp.models import CrossLayerTranscoder
from probinterp.models.activation_priors import (
    BernoulliGaussian,
    BernoulliTruncatedNormal,
    HardConcrete,
    ReLUTopK,
    Truncated,
)
from probinterp.models.transcoder_polish import (
    best_slab_scale,
    fit_noise_scales,
    fit_posterior_scales,
    fit_slab_scales,
)

sys.path.append(str(Path(__file__).parent))
from transcoder_cases import D, H, L, N, tokens  # noqa: E402

PRIORS = {
    "A": lambda: BernoulliGaussian(1.0),
    "B": lambda: BernoulliTruncatedNormal(1.0),
    "D": lambda: Truncated(BernoulliTruncatedNormal(1.0), 3),
    "DA": lambda: Truncated(BernoulliGaussian(1.0), 3),
}
SAMPLED = PRIORS | {"C": lambda: HardConcrete(1.0)}
each_prior = pytest.mark.parametrize("name", PRIORS)


def allocated(name, seed=0):
    """A prior in double precision whose parameters differ by layer and latent."""
    torch.manual_seed(seed)
    prior = SAMPLED[name]()
    prior.allocate(L, H)
    for parameter in prior.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    for key, buffer in prior.named_buffers():
        if key.endswith("rate"):
            buffer.uniform_(0.05, 0.3)
    return prior.double()


def made(name, seed=0, **options):
    torch.manual_seed(seed)
    model = CrossLayerTranscoder(L, D, H, activation=SAMPLED[name](), **options)
    model.initialize(tokens(), N)
    model.initialized.fill_(True)
    for parameter in model.activation.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model.double().eval()


def doubles(n=N, seed=0):
    batch = tokens(n, seed)
    return batch._replace(x=batch.x.double(), inputs=batch.inputs.double())


def pre_activations(n=50):
    return torch.randn(n, L, H, dtype=torch.float64)


@pytest.mark.parametrize("name", SAMPLED)
def test_moments_are_those_of_the_distributions(name):
    prior, pre = allocated(name), pre_activations()
    moments, q, p = prior.moments(pre), prior.posterior(pre), prior.prior()
    assert (q.batch_shape, q.event_shape, p.event_shape) == ((50,), (L, H), (L, H))
    torch.testing.assert_close(moments.mean, q.mean)
    torch.testing.assert_close(moments.variance, q.variance)
    total = (moments.kl_gate + moments.kl_slab).sum(1)
    torch.testing.assert_close(total, kl_divergence(q, p))
    assert (moments.kl_gate >= 0).all()
    assert (moments.kl_slab >= 0).all()


@pytest.mark.parametrize("name", SAMPLED)
def test_hard_codes_are_the_means_of_gates_that_are_more_likely_open(name):
    prior, pre = allocated(name), pre_activations()
    moments, inclusion, hard = prior.moments(pre), prior.inclusion(pre), prior.hard(pre)
    wanted = torch.where(inclusion > 0.5, moments.mean / inclusion, 0.0)
    torch.testing.assert_close(hard, wanted)
    assert 0 < (hard != 0).double().mean() < 0.5
    if name in ("B", "D"):
        assert (hard >= 0).all()


@pytest.mark.parametrize("name", SAMPLED)
def test_one_layer_alone_has_the_same_codes(name):
    prior, pre = allocated(name), pre_activations()
    whole = prior.moments(pre)
    for layer in range(L):
        part = slice(layer, layer + 1)
        alone = prior.at_layer(layer).moments(pre[:, part])
        torch.testing.assert_close(alone.mean, whole.mean[:, part])
        torch.testing.assert_close(alone.kl_gate, whole.kl_gate[:, part])


# -- starting values and prior rates -------------------------------------------------------------


def test_gates_start_at_the_smaller_of_four_times_the_rate_and_twelve_per_cent():
    for target, start in ((0.1, 0.05), (2.0, 0.12)):
        prior = BernoulliGaussian(target)
        prior.allocate(L, H)
        zero = torch.zeros(1, L, H)
        torch.testing.assert_close(prior.inclusion(zero), torch.full((1, L, H), start))
        assert (prior.gate_slope == 4.0).all()
        torch.testing.assert_close(prior.rate, torch.full((L, H), target / H))


@pytest.mark.parametrize("begin", [0.0, 40.0])
def test_learned_rates_are_the_mode_of_their_posterior(begin):
    torch.manual_seed(0)
    gates = torch.rand(30, dtype=torch.float64).pow(4)
    prior = BernoulliGaussian(1.0, prior_tokens=begin)
    prior.allocate(1, 8)
    prior.double()
    wide = gates.view(-1, 1, 1).expand(-1, 1, 8)
    for _ in range(3000):  # the running mean forgets its start
        prior.follow(wide, n_total=len(gates))
    start = 1.0 / 8

    def cost(rate):
        data = gates * math.log(rate) + (1 - gates) * math.log(1 - rate)
        beta = begin * (start * math.log(rate) + (1 - start) * math.log(1 - rate))
        return -(data.sum().item() + beta)

    found = optimize.minimize_scalar(cost, (1e-3, 0.1, 0.9), options={"xtol": 1e-9})
    assert prior.rate[0, 0].item() == pytest.approx(found.x, rel=1e-6)


def test_rates_stay_during_the_warmup_and_never_reach_zero():
    prior = BernoulliTruncatedNormal(1.0, prior_tokens=0.0)
    prior.allocate(L, H)
    pre = torch.full((5, L, H), -100.0)
    prior.update(pre, 10**6, progress=0.29)
    assert (prior.rate == 1.0 / H).all()
    for _ in range(2000):
        prior.update(pre, 10**6, progress=0.3)
    torch.testing.assert_close(prior.rate, torch.full((L, H), 1e-2 / H))
    assert prior.unused.all()
    fixed = BernoulliTruncatedNormal(1.0, learn_rate=False)
    fixed.allocate(L, H)
    fixed.update(pre, 10**6, progress=1.0)
    assert not fixed.unused.any()


# -- truncation ----------------------------------------------------------------------------------


def test_closed_gates_cost_the_log_of_the_prior_probability_and_learn_nothing():
    prior, pre = allocated("D"), pre_activations().requires_grad_()
    moments, indices = prior.moments(pre), prior.select(pre)
    kept = torch.zeros_like(pre, dtype=torch.bool).scatter(2, indices, True)
    assert (kept.sum(2) == 3).all()
    whole = prior.whole.posterior_by_code(pre)
    smallest = whole.logits.masked_fill(~kept, math.inf).amin(2)
    assert (whole.logits.masked_fill(kept, -math.inf).amax(2) <= smallest).all()
    gate = prior.whole.moments_of(pre, indices).kl_gate.sum(2)
    elsewhere = torch.where(kept, 0.0, -torch.log1p(-prior.whole.rate)).sum(2)
    torch.testing.assert_close(moments.kl_gate, gate + elsewhere)
    sum(part.sum() for part in moments).backward()
    assert (pre.grad[~kept] == 0).all()
    assert (moments.mean[~kept] == 0).all()


@pytest.mark.parametrize("name", ["A", "B"])
def test_nothing_truncated_is_the_whole(name):
    prior = allocated(name)
    every = Truncated(SAMPLED[name](), H)
    every.allocate(L, H)
    every.double().whole.load_state_dict(prior.state_dict())
    pre = pre_activations()
    for found, wanted in zip(every.moments(pre), prior.moments(pre), strict=True):
        torch.testing.assert_close(found, wanted)


def test_the_number_of_gates_shrinks_to_k():
    prior = Truncated(BernoulliGaussian(1.0), 3, shrink=0.5)
    prior.allocate(L, H)
    found = []
    for progress in (0.0, 0.25, 0.5, 1.0):
        prior.anneal(progress)
        found.append(prior.select(torch.randn(2, L, H)).shape[2])
    assert found == [6, 4, 3, 3]


def test_evaluation_keeps_k_gates_whenever_training_was_left():
    prior = Truncated(BernoulliGaussian(4), k=5, shrink=0.5)
    prior.allocate(2, 20)
    pre = torch.randn(7, 2, 20)
    prior.anneal(0.1)
    assert prior.train().select(pre).shape == (7, 2, 9)
    assert prior.eval().select(pre).shape == (7, 2, 5)


@pytest.mark.parametrize("name", ["D", "DA"])
def test_few_codes_run_on_the_sparse_decoder(name):
    dense, sparse = made(name), made(name, layout="source")
    sparse.load_state_dict(dense.state_dict())
    batch = doubles()
    for key, term in sparse.elbo(batch).items():
        torch.testing.assert_close(term, dense.elbo(batch)[key])
    torch.testing.assert_close(sparse(batch.inputs), dense(batch.inputs))


# -- the bound -----------------------------------------------------------------------------------


def program_terms(model, batch, elbo):
    """Log weight of one draw of all tokens by the Pyro programs, or terms with exact divergences.

    Returns the bound summed over the tokens.
    """
    if elbo == "meanfield":
        terms = elbo_terms(model.model, model.guide, batch)
        return sum(term for term, _ in terms.values()).item()
    guide = poutine.trace(model.guide).get_trace(batch)
    replayed = poutine.replay(model.model, trace=guide)
    return (poutine.trace(replayed).get_trace(batch).log_prob_sum() - guide.log_prob_sum()).item()


@each_prior
@pytest.mark.parametrize("elbo", ["meanfield", "trace"])
def test_the_closed_form_is_the_mean_of_twenty_thousand_draws(name, elbo):
    model, batch = made(name), doubles(4)
    exact = model.exact_elbo(batch)
    wanted = sum(term for term, _ in exact.values()).item()
    copies = 200
    many = type(batch)(*(v.repeat(copies, *[1] * (v.ndim - 1)) for v in batch))
    torch.manual_seed(3)
    with torch.no_grad(), pyro.validation_enabled(False):
        found = torch.tensor([program_terms(model, many, elbo) for _ in range(100)]) / copies
    error = found.std() / math.sqrt(len(found))
    assert abs(found.mean() - wanted) < 3 * error
    assert error < 0.02 * abs(wanted)


@each_prior
def test_bounds_scale_with_the_size_of_the_data(name):
    model, batch = made(name), doubles()
    whole, part = model.exact_elbo(batch), model.exact_elbo(batch, n_total=5 * N)
    assert set(whole) == {"x", "kl_gate", "kl_slab"}
    for key, (term, is_local) in part.items():
        assert is_local
        torch.testing.assert_close(term, 5 * whole[key][0])


@pytest.mark.parametrize("name", ["A", "B"])
def test_the_bound_is_the_same_for_larger_codes_shorter_decoders_and_a_wider_prior(name):
    model, batch, factor = made(name), doubles(), 1.7
    law = model.activation.posterior_by_code(model.encoder(batch.inputs))
    prior = model.activation.prior_by_code()
    before = kl_divergence(law.slab, prior.slab)
    wide = type(law.slab)(factor * model.encoder(batch.inputs), factor * law.slab.scale)
    wide_prior = type(prior.slab)(prior.slab.loc, factor * prior.slab.scale)
    torch.testing.assert_close(kl_divergence(wide, wide_prior), before, rtol=1e-10, atol=1e-10)
    fit_before = model.elbo(batch)["x"]
    with torch.no_grad():
        model.encoder.weight *= factor
        model.encoder.bias *= factor
        model.activation.gate_slope /= factor
        model.activation.log_scale += math.log(factor)
        for weight in model.decoders.weights:
            weight /= factor
    torch.testing.assert_close(model.elbo(batch)["x"], fit_before, rtol=1e-10, atol=1e-10)


def test_the_hard_concrete_bound_has_to_be_sampled():
    model, batch = made("C"), tokens()
    assert model.exact_elbo(batch) is None
    with pytest.raises(ValueError, match="HardConcrete has no closed form"):
        model.elbo(batch)


# -- closed-form optima --------------------------------------------------------------------------


def bound(model, batch):
    with torch.no_grad():
        return sum(term.sum() for term in model.elbo(batch).values()).item()


def optimum(model, batch, parameter, index):
    """The value of one entry of a parameter that maximises the bound."""

    def cost(value):
        with torch.no_grad():
            parameter[index] = value
        return -bound(model, batch)

    at = parameter[index].item()
    found = optimize.minimize_scalar(cost, (at - 0.3, at + 0.2), options={"xtol": 1e-10}).x
    with torch.no_grad():
        parameter[index] = at
    return found


@pytest.mark.parametrize("name", ["A", "B"])
def test_noise_scales_are_optimal(name):
    model, batch = made(name), doubles()
    before = bound(model, batch)
    fit_noise_scales(model, batch)
    assert bound(model, batch) > before
    for layer in range(L):
        found = optimum(model, batch, model.noise.log_scale, layer)
        assert model.noise.log_scale[layer].item() == pytest.approx(found, abs=1e-6)


def test_posterior_scales_are_optimal():
    model, batch = made("A"), doubles()
    fit_posterior_scales(model)
    for index in ((0, 0), (1, 3), (2, 7)):
        found = optimum(model, batch, model.activation.log_scale, index)
        assert model.activation.log_scale[index].item() == pytest.approx(found, abs=1e-6)
    with pytest.raises(TypeError, match="BernoulliGaussian codes expected"):
        fit_posterior_scales(made("B"))


@pytest.mark.parametrize("name", ["A", "B"])
def test_slab_scales_are_optimal_and_leave_the_outputs(name):
    model, batch = made(name), doubles()
    pre = model.encoder(batch.inputs)
    tau = best_slab_scale(model.activation, pre)
    law = model.activation.posterior_by_code(pre)
    slab = type(law.slab)

    def cost(value):
        zero, wide = torch.zeros_like(tau), torch.full_like(tau, math.exp(value))
        return (law.inclusion * kl_divergence(law.slab, slab(zero, wide))).sum(0)[1, 2].item()

    found = math.exp(optimize.minimize_scalar(cost, (-1.0, 0.0), options={"xtol": 1e-10}).x)
    assert tau[1, 2].item() == pytest.approx(found, rel=1e-6)
    outputs, before = model(batch.inputs), model.elbo(batch)
    fit_slab_scales(model, batch)
    torch.testing.assert_close(model(batch.inputs), outputs)
    after = model.elbo(batch)
    torch.testing.assert_close(after["x"], before["x"])
    torch.testing.assert_close(after["kl_gate"], before["kl_gate"])
    assert after["kl_slab"].sum() > before["kl_slab"].sum()
    ones = best_slab_scale(model.activation, model.encoder(batch.inputs))
    torch.testing.assert_close(ones, torch.ones_like(ones))


# -- training ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLED)
def test_training_raises_the_bound_and_keeps_codes_sparse(name, tmp_path):
    torch.manual_seed(0)
    train, test = tokens(600), tokens(200, seed=5)
    model = CrossLayerTranscoder(L, D, H, activation=SAMPLED[name]())
    history = fit(
        model,
        BatchData(train),
        max_epochs=50,
        batch_size=100,
        optimizer=lambda p: torch.optim.Adam(p, lr=2e-2),
        progress=False,
    )
    assert history.records[-1].loss < history.records[0].loss - 3
    with torch.no_grad():
        error = (model(test.inputs) - test.x).square().sum()
    assert error < 0.7 * (test.x - test.x.mean(0)).square().sum()
    save(model, tmp_path / "model")
    again = load(tmp_path / "model")
    assert torch.equal(again.hard_codes(test.inputs), model.hard_codes(test.inputs))
    codes = model.posterior_codes(test.inputs)
    assert codes.sample(seed=1).shape == codes.hard().shape == (200, L, H)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BernoulliGaussian(0.0), "target_l0 must be positive, got 0.0."),
        (lambda: BernoulliGaussian(1.0, prior_tokens=-1.0), "prior_tokens must not be negative"),
        (lambda: BernoulliGaussian(1.0, rate_warmup=2.0), "rate_warmup must be a share"),
        (lambda: BernoulliGaussian(8.0).allocate(L, H), "target_l0 must be less than n_latents"),
        (lambda: Truncated(BernoulliGaussian(1.0), 0), "k must be a positive integer, got 0."),
        (lambda: Truncated(BernoulliGaussian(1.0), 9).allocate(L, H), "k must be at most"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_only_spike_and_slab_codes_can_be_truncated():
    with pytest.raises(TypeError, match="prior must be a BernoulliGaussian or"):
        Truncated(ReLUTopK(2), 1)
