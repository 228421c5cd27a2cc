"""Training of transcoders, what it leaves behind, and predictive checks of the result."""

import math
import sys
from pathlib import Path

import pytest
import torch

from probinterp.criticism import FunctionDraw, pop_pc
from probinterp.inference import (
    BatchData,
    Checkpoint,
    calibrate_noise,
    fit,
    late_cosine,
    late_linear,
    load,
    predictive_draws,
    save,
)
from probinterp.models import Batch, CrossLayerTranscoder, FactorAnalysis
from probinterp.models.activation_priors import ReLUTopK

sys.path.append(str(Path(__file__).parent))
from transcoder_cases import ACTIVATIONS, D, H, L, N, adam, made, tokens  # noqa: E402

each_activation = pytest.mark.parametrize("name", ACTIVATIONS)


# -- dead latents --------------------------------------------------------------------------------


def test_dead_latents_predict_what_the_others_leave():
    model, batch = made("relu").train(), tokens()
    model.dead_latents.patience.fill_(100.0)
    model.dead_latents.tokens_since_fired[:, :4] = 101
    dead = model.dead_latents.dead
    assert dead.sum() == L * 4
    loss = -model.exact_elbo(batch)["dead_latents"][0] / N
    pre = model.encoder(batch.inputs).detach()
    residual = (
        batch.x * model.outputs.scale - model._mean(model._encoded(batch.inputs), batch.inputs)
    ).detach()
    wanted = 0.0
    for target in range(L):
        predicted = torch.zeros(N, D)
        for source in range(target + 1):
            alive_apart = pre[:, source].masked_fill(~dead[source], 0.0).relu()
            top = alive_apart.topk(D // 2, dim=1)
            z = torch.zeros(N, H).scatter(1, top.indices, top.values)
            predicted += z @ model.decoders.block(source, target).detach()
        error = residual[:, target]
        spread = (error - error.mean(0)).square().sum()
        share = min((target + 1) * 4 / (D / 2), 1.0)
        wanted += share * (predicted - error).square().sum() / spread
    torch.testing.assert_close(loss.detach(), wanted / 32, rtol=1e-4, atol=1e-5)
    loss.backward()
    bias = model.encoder.bias.grad
    assert bias[dead].abs().sum() > 0
    assert bias[~dead].abs().sum() == 0


def test_counters_know_when_a_latent_fired_last():
    model = made("relu").train()
    with torch.no_grad():
        model.encoder.bias[:, 0] = -1e4
    data = BatchData(tokens())
    fit(model, data, max_epochs=3, batch_size=20, progress=False)
    counters = model.dead_latents
    assert (counters.tokens_since_fired[:, 0] == 3 * N).all()
    assert counters.n_seen.item() == 3 * N
    assert counters.patience.item() == pytest.approx(0.05 * 3 * N * 9 / 8)  # known at step 8 of 9
    assert counters.dead[:, 0].all()
    codes = model.encode(tokens().inputs)
    recent = counters.tokens_since_fired == 0
    assert recent.any()
    assert (codes != 0).any()


# -- training ------------------------------------------------------------------------------------


@each_activation
@pytest.mark.parametrize("after", [1, 7])
def test_an_interrupted_fit_goes_on_with_the_same_bits(name, after, tmp_path, monkeypatch):
    data, options = BatchData(tokens()), {"max_epochs": 5, "batch_size": 20, "progress": False}
    layout = "source" if name == "relu" else "target"
    whole = made(name, layout=layout)
    fit(whole, data, optimizer=adam, **options)
    crashed, path = made(name, layout=layout), Checkpoint(tmp_path / "state", every_minutes=0)
    original, calls = CrossLayerTranscoder.anneal, []

    def fail_later(self, progress):
        calls.append(progress)
        if len(calls) == after + 1:
            raise RuntimeError("power cut")
        original(self, progress)

    with monkeypatch.context() as patch:
        patch.setattr(CrossLayerTranscoder, "anneal", fail_later)
        with pytest.raises(RuntimeError, match="power cut"):
            fit(crashed, data, optimizer=adam, checkpoint=path, **options)
    resumed = made(name, seed=9, layout=layout)
    fit(resumed, data, optimizer=adam, checkpoint=Checkpoint(tmp_path / "state"), **options)
    for (key, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), key


@each_activation
def test_a_saved_transcoder_is_the_same_again(name, tmp_path):
    if name == "gaussian":
        pytest.skip("a class of the tests")
    model, batch = made(name, layout="source", skip=True), tokens()
    model.metadata = {"hook_names": ["mlp.input"], "backbone": {"name": "tiny", "layers": 3}}
    save(model, tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.metadata == model.metadata
    assert torch.equal(again(batch.inputs), model(batch.inputs))
    assert again.decoders.layout == "source"


@each_activation
@pytest.mark.parametrize("layout", ["target", "source"])
def test_bfloat16_learns_what_single_precision_does(name, layout, device):
    losses = []
    for precision in ("fp32", "bf16"):
        model = made(name, layout=layout)
        options = {"max_epochs": 4, "batch_size": 50, "device": device, "progress": False}
        history = fit(model, BatchData(tokens(200)), precision=precision, optimizer=adam, **options)
        losses.append([record.loss for record in history.records])
        assert all(p.dtype == torch.float32 for p in model.parameters())
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_the_learning_rate_falls_on_a_line_in_the_last_fifth():
    assert [late_linear(p) for p in (0.0, 0.5, 0.79)] == [1.0, 1.0, 1.0]
    assert [late_linear(p) for p in (0.9, 1.0)] == pytest.approx([0.5, 0.0])


def nmse(model, batch):
    with torch.no_grad():
        error = (model(batch.inputs) - batch.x).square().sum((0, 2))
    return error / (batch.x - batch.x.mean(0)).square().sum((0, 2))


def test_writing_to_later_layers_helps_where_they_depend_on_earlier_ones():
    train, test = tokens(1500), tokens(500, seed=5)
    found = {}
    for cross_layer in (True, False):
        torch.manual_seed(0)
        model = CrossLayerTranscoder(
            L, D, 24, activation=ReLUTopK(8), cross_layer=cross_layer, skip=True
        )
        fit(
            model,
            BatchData(train),
            max_epochs=60,
            batch_size=100,
            optimizer=lambda p: torch.optim.Adam(p, lr=1e-2),
            max_grad_norm=1.0,
            progress=False,
        )
        found[cross_layer] = nmse(model, test)
    assert found[True].max() < 0.15
    assert abs(found[True][0] - found[False][0]) < 0.05  # the first layer has no earlier one
    assert (found[False][1:] > 2 * found[True][1:]).all()


def test_noise_follows_the_residuals_and_is_calibrated_on_others():
    train, test = tokens(400), tokens(300, seed=5)
    model = made("relu")
    options = {"batch_size": 100, "optimizer": adam, "schedule": late_cosine, "progress": False}
    fit(model, BatchData(train), max_epochs=150, **options)

    def residual_scale(batch):
        with torch.no_grad():
            error = (model(batch.inputs) - batch.x) * model.outputs.scale
        return error.square().mean((0, 2)).sqrt()

    torch.testing.assert_close(
        model.noise.log_scale.exp(), residual_scale(train), rtol=0.05, atol=0.0
    )
    calibrate_noise(model, test, batch_size=64)
    torch.testing.assert_close(model.noise.log_scale.exp(), residual_scale(test))


def test_predictions_of_uncertain_codes_are_as_wide_as_new_residuals():
    train, test = tokens(400), tokens(300, seed=5)
    model = made("gaussian")
    options = {"batch_size": 100, "optimizer": adam, "progress": False}
    fit(model, BatchData(train), max_epochs=100, **options)
    model.eval()

    def ratio():
        found = model.predictive(test.inputs)
        error = (found.mean - test.x).square().mean((0, 2))
        return error / found.variance.mean((0, 2))

    assert (ratio() < 0.98).all()  # the bound's scale counts the variance of the codes
    calibrate_noise(model, test, batch_size=64)
    torch.testing.assert_close(ratio(), torch.ones_like(ratio()), rtol=1e-4, atol=0)


# -- predictive checks ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["relu", "gaussian"])
def test_draws_have_codes_that_never_saw_the_outputs(name):
    model, batch = made(name), tokens(50, seed=5)
    draws = predictive_draws(model, batch, 400, seed=1)
    assert (draws.local, draws.point_estimate) == ("covariates", True)
    elsewhere = predictive_draws(model, batch._replace(x=batch.x + 100), 1, seed=1)
    assert torch.equal(next(iter(draws)).replicate(), next(iter(elsewhere)).replicate())
    replicates = torch.stack([draw.replicate() for draw in draws])
    wanted = model.predictive(batch.inputs)
    scale = wanted.variance.sqrt()
    assert ((replicates.mean(0) - wanted.mean) / scale).abs().max() < 6 / math.sqrt(400)
    torch.testing.assert_close(
        (replicates.var(0) / wanted.variance).mean((0, 2)), torch.ones(L), atol=0.05, rtol=0
    )
    likelihood = draws.reference.likelihood(batch.x)
    torch.testing.assert_close(likelihood.mean, model(batch.inputs))
    assert (likelihood.batch_shape, likelihood.event_shape) == ((50,), (L, D))


def test_checks_take_draws_from_covariates_for_calibrated():
    model, batch = made("relu"), tokens(50, seed=5)
    draws = predictive_draws(model, batch, 99, seed=1)

    def flat_draw(draw):
        replicate = lambda: draw.replicate().flatten(1)  # noqa: E731
        return FunctionDraw(replicate, draw.likelihood, draw.local)

    x_new = draws.reference.replicate().flatten(1)  # data from the model itself
    result = pop_pc([flat_draw(draw) for draw in draws], x_new, lambda x, draw: x.mean(), n_obs=999)
    assert (result.local, result.calibrated) == ("covariates", True)
    assert 0.01 < result.p_value < 0.99


def test_marginal_scores_count_the_variance_of_the_codes():
    model, batch = made("gaussian"), tokens(20, seed=5)
    draws = predictive_draws(model, batch, 1, scoring="marginal", n_samples=4000)
    found = draws.reference.likelihood(batch.x).log_prob(batch.x)
    # linear Gaussian: the outputs of one token are jointly normal
    covariance, sigma = torch.zeros(L * D, L * D), model.noise.log_scale.exp()
    for i in range(L):
        wide = torch.cat(
            [model.decoder(i, j) if j >= i else torch.zeros(H, D) for j in range(L)], 1
        )
        covariance += wide.mT @ (model.activation.log_scale[i].exp().square().unsqueeze(1) * wide)
    noise = (sigma.unsqueeze(1) * model.outputs.unit).expand(L, D).flatten().square()
    exact = torch.distributions.MultivariateNormal(
        model(batch.inputs).flatten(1).detach(), (covariance + noise.diag()).detach()
    )
    wanted = exact.log_prob(batch.x.flatten(1))
    usable = wanted > wanted.median()
    assert (found[usable] - wanted[usable]).abs().max() < 2.0


def test_modes_that_make_no_sense_are_refused():
    model, batch = made(), tokens()
    with pytest.raises(ValueError, match='local must be "prior", "posterior", "observed" or'):
        predictive_draws(model, batch, 1, local="inputs")
    flat = Batch(batch.x.flatten(1))
    with pytest.raises(ValueError, match="latents of FactorAnalysis are inferred from them"):
        predictive_draws(FactorAnalysis(L * D, 2), flat, 1, local="covariates")
