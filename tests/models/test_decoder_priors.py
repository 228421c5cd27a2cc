import math
import sys
from pathlib import Path

import pytest
import torch

from probinterp.inference import BatchData, fit, load, save
from probinterp.models import CrossLayerTranscoder
from probinterp.models.activation_priors import BernoulliTruncatedNormal
from probinterp.models.decoder_priors import GroupPrior, GroupSpikeSlabLasso, typical_length
from probinterp.models.transcoder_decoder import TriangularDecoder

sys.path.append(str(Path(__file__).parent))
from transcoder_cases import D, H, L, N, adam, tokens  # noqa: E402


def group(width, spike, slab, eta):
    return GroupPrior(width, *(torch.tensor(v, dtype=torch.float64) for v in (spike, slab, eta)))


def made(layout="target", prior=None, **options):
    torch.manual_seed(0)
    model = CrossLayerTranscoder(
        L,
        D,
        H,
        activation=BernoulliTruncatedNormal(1.0),
        decoder_prior=prior or GroupSpikeSlabLasso(),
        layout=layout,
        **options,
    )
    model.initialize(tokens(), N)
    model.initialized.fill_(True)
    return model


@pytest.mark.parametrize(("width", "ratio"), [(5, 0.3), (16, 0.05), (768, 0.05)])
def test_the_slope_is_the_derivative_of_the_density(width, ratio):
    prior = group(width, width / ratio, float(width), 0.2)
    at = prior.threshold.item()
    norm = torch.linspace(0.1 * at, 5 * at, 60, dtype=torch.float64)
    norm = torch.cat([norm, at + torch.linspace(-1e-3, 1e-3, 41, dtype=torch.float64)])
    norm.requires_grad_()
    (found,) = torch.autograd.grad(prior.log_density(norm).sum(), norm)
    torch.testing.assert_close(-found, prior.slope(norm).detach(), rtol=1e-9, atol=1e-9)


def test_the_density_is_the_mixture():
    prior = group(4, 30.0, 2.0, 0.3)
    norm = torch.linspace(0, 3, 20, dtype=torch.float64)
    wanted = 0.3 * 2**4 * (-2 * norm).exp() + 0.7 * 30**4 * (-30 * norm).exp()
    torch.testing.assert_close(prior.log_density(norm), wanted.log())
    slab = 0.3 * 2**4 * (-2 * norm).exp()
    torch.testing.assert_close(prior.inclusion(norm), slab / wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_seven_hundred_channels_do_not_overflow(dtype):
    prior = GroupPrior(768, *(torch.tensor(v, dtype=dtype) for v in (768 / 0.05, 768.0, 0.5)))
    assert prior.threshold.item() == pytest.approx(0.158, abs=5e-4)
    norm = torch.tensor([0.0, 0.15, prior.threshold.item(), 0.165, 10.0], dtype=dtype)
    included = prior.inclusion(norm)
    assert included.isfinite().all()
    assert included[[0, 1]].max() < 1e-6
    assert included[[3, 4]].min() > 1 - 1e-6
    assert prior.slope(norm).isfinite().all()
    edge = prior.threshold + torch.tensor([-3e-4, 3e-4], dtype=dtype)  # it is about 6e-4 wide
    low, high = prior.inclusion(edge)
    assert low < 0.05
    assert high > 0.95


@pytest.mark.parametrize("layout", ["target", "source"])
def test_a_step_shortens_every_vector_by_its_slope(layout):
    rate, n_tokens = 0.3, 1000
    model = made(layout, GroupSpikeSlabLasso(0.1, learning_rate=rate)).double()
    prior, decoders = model.decoder_prior, model.decoders
    with torch.no_grad():
        decoders.block(0, 1)[2] *= 1e-3
        decoders.block(0, 1)[3] = 0
    before = {pair: decoders.block(*pair).detach().clone() for pair in decoders.pairs()}
    radius = typical_length(decoders).item()
    prior.update(decoders, n_tokens, 0.2)
    assert all(torch.equal(decoders.block(*pair), before[pair]) for pair in before)
    prior.update(decoders, n_tokens, 1.0)
    assert prior.slab_radius.tolist() == pytest.approx([radius] * L)
    assert prior.spike_share.item() == pytest.approx(0.1)
    for i, (pair, weight) in enumerate(before.items()):
        norm = weight.norm(dim=1)
        slab, spike = D / radius, D / (0.1 * radius)
        odds = D * math.log(0.1) + (spike - slab) * norm  # a share of one half has log odds zero
        included = odds.sigmoid()
        slope = slab * included + spike * (1 - included)
        shrunk = (norm - rate / n_tokens * slope).clamp_min(0.0)
        direction = weight / norm.clamp_min(1e-300).unsqueeze(1)
        torch.testing.assert_close(
            decoders.block(*pair).detach(), direction * shrunk.unsqueeze(1), rtol=1e-6, atol=1e-9
        )
        share = included.mean().clamp(0.5 / H, 1 - 0.5 / H)
        assert prior.eta[i].item() == pytest.approx(share.item(), rel=1e-6)
    assert (decoders.block(0, 1)[2:4] == 0).all()


def test_the_spike_narrows_step_by_step():
    prior = GroupSpikeSlabLasso(0.01, ladder=2, begin=0.2, end=0.6)
    model = made(prior=prior)
    found = []
    for progress in (0.2, 0.3, 0.4, 0.5, 0.9):
        prior.update(model.decoders, 10**6, progress)
        found.append(prior.spike_share.item())
    assert found == pytest.approx([1.0, 0.1, 0.1, 0.01, 0.01], rel=1e-5)


def test_what_is_not_kept_can_be_pruned_and_survives_saving_and_folding(tmp_path):
    model = made()
    with torch.no_grad():
        model.decoders.block(0, 2)[:5] *= 1e-3
        model.decoders.block(1, 1)[6] *= 1e-3
    model.decoder_prior.update(model.decoders, 10**9, 1.0)
    kept = model.decoder_prior.kept_blocks(model.decoders)
    assert kept.shape == (L, L, H)
    wanted = torch.ones(L, L, dtype=torch.bool).triu().unsqueeze(2).repeat(1, 1, H)
    wanted[0, 2, :5] = wanted[1, 1, 6] = False
    assert torch.equal(kept, wanted)
    save(model, tmp_path / "model")
    again = load(tmp_path / "model")
    assert torch.equal(again.decoder_prior.kept_blocks(again.decoders), kept)
    folded = model.fold_normalization()
    assert torch.equal(folded.decoder_prior.kept_blocks(folded.decoders), kept)
    model.decoder_prior.prune(model.decoders)
    assert (model.decoders.block(0, 2)[:5] == 0).all()
    assert (model.decoders.block(0, 2)[5:] != 0).all()


def test_training_with_the_prior_reports_its_term():
    model = made()
    fit(model, BatchData(tokens(300)), max_epochs=4, batch_size=50, optimizer=adam, progress=False)
    assert model.decoder_prior.slab_radius.min() > 0
    terms = model.exact_elbo(tokens())
    assert terms["decoders"][0].item() == 0
    assert not terms["decoders"][1]


def test_layers_apart_have_one_pair_each():
    model = made(cross_layer=False)
    model.decoder_prior.update(model.decoders, 1000, 1.0)
    assert model.decoder_prior.eta.shape == (L,)
    kept = model.decoder_prior.kept_blocks(model.decoders)
    assert not kept[0, 1].any()


def test_the_typical_length_is_that_of_the_longest_vector_of_each_latent():
    decoder = TriangularDecoder(2, 3, 2, cross_layer=True, layout="target")
    with torch.no_grad():
        decoder.block(0, 0)[:, 0] = torch.tensor([1.0, 2.0, 3.0])
        decoder.block(0, 1)[:, 1] = torch.tensor([4.0, 0.0, 0.0])
        decoder.block(1, 1)[:, 0] = torch.tensor([5.0, 0.0, 6.0])
    assert typical_length(decoder).item() == 3.0  # median of 4, 2, 3, 5, 0, 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r0": 0.0}, r"r0 must lie in \(0, 1\), got 0.0."),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0."),
        ({"ladder": 0}, "ladder must be a positive integer, got 0."),
        ({"begin": 0.9}, "begin < end expected, got 0.9 and 0.8."),
        ({"end": 1.1}, "end must be a share of the steps"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        GroupSpikeSlabLasso(**options)
