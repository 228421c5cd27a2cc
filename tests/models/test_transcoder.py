"""Cross-layer transcoders: the same numbers by every route, and the bound that is stated."""

import copy
import math
import sys
from pathlib import Path

import pytest
import torch
from pyro.infer import Trace_ELBO

from probinterp.inference import BatchData, MeanFieldELBO, fit, posterior
from probinterp.inference.elbo import negative_bound
from probinterp.models import ActivationBatch, CrossLayerTranscoder
from probinterp.models.activation_priors import JumpReLU, ReLUTopK
from probinterp.models.transcoder_decoder import DecoderPrior, layout_for

sys.path.append(str(Path(__file__).parent))
from transcoder_cases import ACTIVATIONS, D, H, L, N, made, tokens  # noqa: E402

each_activation = pytest.mark.parametrize("name", ACTIVATIONS)
each_layout = pytest.mark.parametrize("layout", ["target", "source", "reference"])


class Shrinkage(DecoderPrior):
    """Standard normal decoders, shrunk by a fixed factor after every step."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def allocate(self, decoder):
        pass

    def log_prob(self, decoder):
        return -0.5 * sum(weight.square().sum() for weight in decoder.weights)

    def update(self, decoder, n_total, progress):
        self.calls.append((n_total, progress))


# -- one function, many routes -------------------------------------------------------------------


@each_activation
@each_layout
@pytest.mark.parametrize("cross_layer", [True, False], ids=["cross", "own"])
@pytest.mark.parametrize("skip", [True, False], ids=["skip", "plain"])
@torch.no_grad()
def test_outputs_are_the_sum_of_contributions(name, layout, cross_layer, skip):
    model, batch = made(name, layout=layout, cross_layer=cross_layer, skip=skip), tokens()
    z = model.encode(batch.inputs)
    found = model(batch.inputs)
    torch.testing.assert_close(model.decode(z, batch.inputs), found)
    for target in range(L):
        sources = range(target + 1) if cross_layer else [target]
        wanted = model.decoder_bias[target].expand(N, -1)
        for source in sources:
            wanted = wanted + z[:, source] @ model.decoder(source, target)
        if skip:
            scaled = batch.inputs[:, target] * model.encoder.scale[target]
            wanted = wanted + scaled @ model.outputs.skip[target] / model.outputs.scale[target]
        torch.testing.assert_close(found[:, target], wanted, rtol=1e-4, atol=1e-3)
        codes = [z[:, i] for i in range(target + 1)]
        alone = model.decode_target(codes, target, batch.inputs[:, target])
        torch.testing.assert_close(alone, found[:, target], rtol=1e-4, atol=1e-3)
        codes[0] = None
        without = model.decode_target(codes, target, batch.inputs[:, target])
        lost = z[:, 0] @ model.decoder(0, target) if 0 in sources else 0.0
        torch.testing.assert_close(without + lost, found[:, target], rtol=1e-4, atol=1e-3)


@each_activation
@torch.no_grad()
def test_one_layer_is_encoded_alone_as_among_the_others(name):
    model, batch = made(name), tokens()
    whole = model.posterior_codes(batch.inputs)
    for layer in range(L):
        inputs = batch.inputs[:, layer]
        alone = model.posterior_codes_of(inputs, layer)
        torch.testing.assert_close(model.encode_layer(inputs, layer), whole.mean[:, layer])
        for a, b in zip(alone[:4], whole[:4], strict=True):
            torch.testing.assert_close(a, b[:, layer])
        assert alone.sample(seed=1).shape == (N, H)
    if name != "gaussian":
        assert not whole.variance.any()
        assert torch.equal(whole.sample(seed=1), whole.mean)
        assert torch.equal(whole.hard(), model.hard_codes(batch.inputs))


@torch.no_grad()
def test_decoder_norm_is_that_of_all_decoders_of_a_latent():
    model = made()
    for layer in range(L):
        decoders = torch.cat([model.decoder(layer, j) for j in range(layer, L)], 1)
        torch.testing.assert_close(model.decoder_norm[layer], decoders.norm(dim=1))


@each_activation
def test_layouts_have_the_same_bound_and_gradients(name):
    batch, found = tokens(), []
    reference = made(name, layout="reference").train()
    for layout in ("reference", "target", "source"):
        model = made(name, layout=layout).train()
        model.load_state_dict(reference.state_dict())
        terms = model.exact_elbo(batch, 200)
        sum(term for term, _ in terms.values()).backward()
        by_target = [w.grad for w in model.decoders.weights]
        if layout == "source":
            shapes = [(i * D) for i in range(L, 0, -1)]
            assert [w.shape[1] for w in by_target] == shapes
            blocks = {
                (i, i + k): b for i, w in enumerate(by_target) for k, b in enumerate(w.split(D, 1))
            }
            by_target = [torch.cat([blocks[i, j] for i in range(j + 1)]) for j in range(L)]
        gradients = [*by_target, model.encoder.weight.grad, model.outputs.bias.grad]
        found.append([torch.stack([t for t, _ in terms.values()]), *gradients])
    for values in found[1:]:
        for a, b in zip(values, found[0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("there", ["target", "source"])
@pytest.mark.parametrize("back", ["target", "source", "reference"])
@pytest.mark.parametrize("cross_layer", [True, False])
@torch.no_grad()
def test_weights_of_another_layout_are_converted_when_loaded(there, back, cross_layer):
    first = made(layout=there, cross_layer=cross_layer)
    second = made(seed=1, layout=back, cross_layer=cross_layer)
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(second(tokens().inputs), first(tokens().inputs))
    assert torch.equal(second.decoder(1, 1), first.decoder(1, 1))


def test_the_layout_follows_the_number_of_active_codes():
    assert layout_for("auto", ReLUTopK(32), 2048) == "source"
    assert layout_for("auto", ReLUTopK(32), 2047) == "target"
    assert layout_for("auto", JumpReLU(), 10**6) == "target"
    assert layout_for("reference", ReLUTopK(32), 2048) == "reference"


@each_activation
@pytest.mark.parametrize("layout", ["target", "source"])
@torch.no_grad()
def test_folding_the_scales_changes_nothing(name, layout):
    model, batch = made(name, layout=layout, skip=True, metadata={"hooks": ["mlp"]}), tokens()
    folded = model.fold_normalization()
    assert torch.equal(folded.outputs.scale, torch.ones(L, 1))
    assert folded.metadata == {"hooks": ["mlp"]}
    for f in (lambda m: m(batch.inputs), lambda m: m.encode(batch.inputs)):
        assert (f(folded) - f(model)).norm() / f(model).norm() < 1e-5
    found, wanted = (m.predictive(batch.inputs) for m in (folded, model))
    torch.testing.assert_close(found.mean, wanted.mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.variance, wanted.variance, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        folded.exact_elbo(batch)["x"][0], model.exact_elbo(batch)["x"][0], rtol=1e-4, atol=1e-2
    )
    assert folded.decoder(0, 1).data_ptr() == folded.decoders.block(0, 1).data_ptr()


# -- starting values -----------------------------------------------------------------------------


@torch.no_grad()
def test_initialisation_scales_and_centres():
    torch.manual_seed(0)
    model, batch = CrossLayerTranscoder(L, D, H, activation=ReLUTopK(2)), tokens(500)
    model.initialize(batch, 500)
    for values, scale in ((batch.inputs, model.encoder.scale), (batch.x, model.outputs.scale)):
        norms = (values * scale).norm(dim=2).mean(0)
        torch.testing.assert_close(norms, torch.full((L,), math.sqrt(D)))
    torch.testing.assert_close(model(batch.inputs), batch.x.mean(0).expand(500, -1, -1))
    pre = model.encoder(batch.inputs)
    torch.testing.assert_close(pre.mean(0), torch.zeros(L, H), atol=1e-5, rtol=0)


def test_a_layer_of_zeros_is_refused():
    batch = tokens()
    batch.inputs[:, 1] = 0
    model = CrossLayerTranscoder(L, D, H, activation=ReLUTopK(2))
    with pytest.raises(ValueError, match="inputs of layer 1 are all zero"):
        model.initialize(batch, N)


# -- the bound -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["relu", "abs", "jump"])
@pytest.mark.parametrize("layout", ["target", "source"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_closed_form_equals_the_program_where_codes_are_points(name, layout, training):
    model, batch = made(name, layout=layout), tokens()
    model.dead_latents.tokens_since_fired.fill_(10**9)
    model.train(training)
    model.anneal(0.5)
    terms = model.exact_elbo(batch, 300)
    exact = sum(term for term, _ in terms.values())
    sampled = -MeanFieldELBO().differentiable_loss(model.model, model.guide, batch, 300)
    torch.testing.assert_close(exact, sampled, rtol=1e-5, atol=1e-2)
    assert ("penalty" in terms) == (training and name == "jump")
    assert ("dead_latents" in terms) == (training and name != "jump")
    assert all(local for _, local in terms.values())


@pytest.mark.parametrize("layout", ["target", "source"])
def test_top_k_loss_is_the_squared_error(layout):
    model, batch = made("relu", layout=layout).train(), tokens()
    exact = model.exact_elbo(batch)["x"][0]
    with torch.no_grad():
        error = ((model(batch.inputs) - batch.x) * model.outputs.scale).square().sum()
        constant = N * D * (model.outputs.scale.log().sum() - L * 0.5 * math.log(math.pi))
    torch.testing.assert_close(-exact.detach(), error - constant, rtol=1e-5, atol=1e-2)


def test_likelihood_is_the_normal_density_of_the_outputs():
    model, batch = made("relu"), tokens()
    mean, unit = model(batch.inputs), model.outputs.unit
    scale = (model.noise.log_scale.exp().unsqueeze(1) * unit).expand_as(mean)
    wanted = torch.distributions.Normal(mean, scale).log_prob(batch.x).sum((1, 2))
    torch.testing.assert_close(model.elbo(batch)["x"], wanted, rtol=1e-5, atol=1e-3)
    law = model.exact_marginal(batch)
    torch.testing.assert_close(law.log_prob(batch.x), wanted, rtol=1e-5, atol=1e-3)


@torch.no_grad()
def test_closed_form_equals_sampling_where_codes_are_random():
    model, batch = made("gaussian"), tokens()
    model.anneal(0.15)  # half of the weight of the divergence
    exact = sum(term for term, _ in model.exact_elbo(batch, 300).values())
    for elbo, n_draws in ((MeanFieldELBO(), 400), (Trace_ELBO(), 1500)):
        draws = torch.stack(
            [
                -torch.as_tensor(elbo.differentiable_loss(model.model, model.guide, batch, 300))
                for _ in range(n_draws)
            ]
        )
        error = draws.std() / math.sqrt(n_draws)
        assert abs(draws.mean() - exact) < 4 * error
        assert error < 0.02 * abs(exact)


@torch.no_grad()
def test_expected_error_counts_the_variance_of_the_codes():
    model, batch = made("gaussian"), tokens(6)
    found = model.elbo(batch)["x"]
    law = model.posterior_codes(batch.inputs).distribution
    sigma = model.noise.log_scale.exp()
    y = batch.x * model.outputs.scale
    draws = law.sample((40_000,))
    total = torch.zeros(6)
    for target in range(L):
        mean = sum(draws[:, :, i] @ model.decoders.block(i, target) for i in range(target + 1))
        residual = y[:, target] - model.outputs.bias[target] - mean
        square = residual.square().sum(-1).mean(0) / sigma[target] ** 2
        total += -0.5 * (square + D * math.log(2 * math.pi)) - D * sigma[target].log()
        total += D * model.outputs.scale[target].log()
    torch.testing.assert_close(found, total, rtol=5e-3, atol=0.05)


def test_a_decoder_prior_enters_bound_program_and_steps():
    torch.manual_seed(0)
    model = CrossLayerTranscoder(L, D, H, activation=ReLUTopK(2), decoder_prior=Shrinkage())
    batch = tokens()
    model.initialize(batch, N)
    with torch.no_grad():
        model.decoders.weights[0].fill_(0.1)
    terms = model.exact_elbo(batch, 300)
    assert terms["decoders"][1] is False
    assert terms["decoders"][0].item() == pytest.approx(-0.5 * 0.01 * H * D)
    sampled = -MeanFieldELBO().differentiable_loss(model.model, model.guide, batch, 300)
    torch.testing.assert_close(sum(t for t, _ in terms.values()), sampled, rtol=1e-5, atol=1e-2)
    fit(model, BatchData(batch), max_epochs=1, batch_size=30, progress=False)
    assert model.decoder_prior.calls == [(N, 0.0), (N, 0.5)]


@torch.no_grad()
def test_predictive_moments_are_those_of_its_samples():
    model, batch = made("gaussian"), tokens(4)
    found, n_draws = model.predictive(batch.inputs), 6000
    draws = found.sample(n_draws, seed=3)
    assert torch.equal(draws[:3], found.sample(3, seed=3))
    scale = found.variance.sqrt()
    assert ((draws.mean(0) - found.mean) / scale).abs().max() < 5 / math.sqrt(n_draws)
    assert (draws.var(0) / found.variance - 1).abs().max() < 6 * math.sqrt(2 / n_draws)
    law = found.likelihood(batch.x)
    assert (law.batch_shape, law.event_shape) == ((4,), (L, D))
    with pytest.raises(ValueError, match=r"y must have shape \(4, 3, 5\)"):
        found.likelihood(batch.x[:, :1])


# -- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda: CrossLayerTranscoder(0, D, H, activation=ReLUTopK(2)), ValueError, "n_layers"),
        (lambda: CrossLayerTranscoder(L, D, H, activation="relu"), TypeError, "ActivationPrior"),
        (lambda: CrossLayerTranscoder(L, D, H, activation=ReLUTopK(9)), ValueError, "at most"),
        (lambda: made(noise="channel"), ValueError, 'noise must be "layer"'),
        (lambda: made(layout="wide"), ValueError, "layout must be one of 'auto'"),
        (lambda: made(elbo="trace"), ValueError, "pass elbo= to fit"),
        (lambda: made(kl_warmup=2.0), ValueError, "kl_warmup must be a share"),
        (lambda: made(auxiliary_weight=-1.0), ValueError, "auxiliary_weight"),
        (
            lambda: made()(torch.zeros(3, L, D + 1)),
            ValueError,
            r"inputs must have shape \(N, 3, 5\)",
        ),
        (lambda: made().decode(torch.zeros(3, L, D)), ValueError, r"z must have shape \(N, 3, 8\)"),
        (lambda: made().encode_layer(torch.zeros(3, D), 3), ValueError, r"layer must be in 0..2"),
        (lambda: made().decoder(2, 1), ValueError, "source 2 and target 1"),
        (lambda: made(cross_layer=False).decoder(0, 1), ValueError, "cross_layer is False"),
        (lambda: made().decode_target([None], 2), ValueError, "codes of layers 0 to 2 expected"),
        (lambda: made(skip=True).decode(torch.zeros(3, L, H)), ValueError, "needs the inputs"),
    ],
)
def test_errors_say_what_was_expected(act, error, message):
    with pytest.raises(error, match=message):
        act()


def test_copies_and_moves_keep_the_numbers(device):
    model, batch = made("jump"), tokens()
    wanted = model(batch.inputs)
    copied = copy.deepcopy(model).to(device)
    found = copied(batch.inputs.to(device)).cpu()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3)
    assert posterior(model, batch) == {}


def test_a_latent_without_decoders_has_a_gradient():
    clt = CrossLayerTranscoder(2, 3, 5, activation=JumpReLU(target_l0=2.0)).train()
    batch = ActivationBatch(torch.randn(9, 2, 3), torch.randn(9, 2, 3))
    clt.initialize(batch, len(batch.x))
    with torch.no_grad():
        for weight in clt.decoders.weights:
            weight.zero_()
    negative_bound(clt, batch, len(batch.x)).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in clt.parameters())
