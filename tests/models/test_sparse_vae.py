"""The sparse VAE against the algebra it rests on."""

import math

import pytest
import torch
from torch import nn

from probinterp import simulate
from probinterp.inference import ArrayData, MeanFieldELBO, factors, fit, load, posterior, save
from probinterp.inference.posterior import decoded_effects
from probinterp.likelihoods import BernoulliLikelihood
from probinterp.models import Batch, FactorAnalysis, SparseVAE


def made(dtype=torch.float64, **options):
    torch.manual_seed(1)
    settings = {"n_hidden": 9, "spike": 10.0, "slab": 1.0} | options
    model = SparseVAE(7, 3, **settings).to(dtype)
    with torch.no_grad():
        model.loadings.normal_()
    return model


def released_loss(model, x, noise, frozen_penalty, sigma, xi):
    """Loss of the authors' code, written out: features in a loop, sigma as a free parameter."""
    nu, batch = 3.0, len(x)
    q = model.encoder(model.likelihood.encoder_input(Batch(x)))
    mean, scale = q.mean, q.variance.sqrt()
    z = mean + scale * noise
    columns = []
    for j in range(x.shape[1]):
        hidden = torch.relu((z * model.loadings[j]) @ model.decoder.first.mT)
        hidden = torch.relu(hidden @ model.decoder.second.mT + model.decoder.second_bias)
        columns.append(hidden @ model.decoder.heads[j] + model.decoder.bias[j])
    fitted = torch.stack(columns, 1)
    kl = 0.5 * (mean**2 + scale**2 - 1 - 2 * scale.log())
    penalty = (frozen_penalty * model.loadings.abs()).sum() / batch
    prior = ((batch + nu + 2) * sigma.log().sum() + nu * xi / 2 * (sigma**-2).sum()) / batch
    return 0.5 * (((x - fitted) / sigma) ** 2).mean() + kl.mean() + penalty + prior


def test_released_objective_has_the_gradient_of_the_authors_loss():
    model = made(objective="released")
    n_total, batch, g = 500, 20, 7
    x = torch.randn(batch, g, dtype=torch.float64)
    model.initialize(Batch(x), n_total)
    model.after_step(0.0)
    torch.manual_seed(5)
    ours = MeanFieldELBO().differentiable_loss(model.model, model.guide, Batch(x), n_total)
    torch.manual_seed(5)
    noise = torch.randn(batch, 3, dtype=torch.float64)
    xi = model.likelihood.prior_variance / g
    sigma = model.likelihood.scale / math.sqrt(g)
    # n_total times their loss, which averages the squared error over features and rows
    theirs = n_total * released_loss(model, x, noise, model.sparse.penalty.clone(), sigma, xi)
    parameters = [p for p in model.parameters() if p.requires_grad]
    first = torch.autograd.grad(ours, parameters, allow_unused=True)
    second = torch.autograd.grad(theirs, parameters, allow_unused=True)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, atol=1e-8 * n_total, rtol=1e-8)


def test_released_inclusion_leaves_the_ratio_of_rates_out():
    model = made(objective="released")
    ours = made(objective="elbo")
    w = model.loadings.abs()
    odds = torch.logit(model.sparse.inclusion_rate) + 9.0 * w
    torch.testing.assert_close(model.inclusion_probability, torch.sigmoid(odds))
    ours.sparse.inclusion_rate.copy_(model.sparse.inclusion_rate)
    torch.testing.assert_close(ours.inclusion_probability, torch.sigmoid(odds + math.log(1 / 10.0)))


def test_rates_follow_the_closed_form_after_a_step():
    model = made()
    before = model.inclusion_probability.clone()
    model.after_step(0.0)
    torch.testing.assert_close(model.sparse.inclusion_rate, before.sum(0) / (2 * 7 - 1))
    with torch.no_grad():
        model.loadings.zero_()
    for _ in range(200):
        model.after_step(0.0)
    assert (model.sparse.inclusion_rate >= 1e-6).all()


def test_global_terms_count_once():
    """The mask's log prior enters the loss of any minibatch with weight one."""
    model = made()
    x = torch.randn(12, 7, dtype=torch.float64)
    model.initialize(Batch(x), 1000)

    def loss(n):
        torch.manual_seed(0)
        return MeanFieldELBO().differentiable_loss(model.model, model.guide, Batch(x), n).item()

    # local terms scale with N: loss(N) = global + N * local
    local = (loss(2000) - loss(1000)) / 1000
    first = loss(1000) - 1000 * local
    assert first == pytest.approx(loss(12) - 12 * local, rel=1e-9)
    rate = model.sparse.inclusion_rate
    slab = rate * 0.5 * torch.exp(-model.loadings.abs())
    spike = (1 - rate) * 5.0 * torch.exp(-10 * model.loadings.abs())
    beta = torch.distributions.Beta(torch.ones(3).double(), torch.full((3,), 7.0).double())
    expected = -(
        torch.log(slab + spike).sum() + beta.log_prob(rate).sum() + model.likelihood.log_prior()
    )
    assert first == pytest.approx(expected.item(), rel=1e-8)


def test_both_free_scales_are_fixed():
    model = made()
    z, w = torch.randn(5, 3, dtype=torch.float64), model.loadings.detach()
    before = model.decoder(z, w)
    with torch.no_grad():
        model.decoder.first_direction.mul_(torch.tensor([3.0, 0.2, 7.0], dtype=torch.float64))
        model.decoder.second_direction.mul_(4.0)
    torch.testing.assert_close(model.decoder(z, w), before, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.decoder.first.norm(dim=0), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(model.decoder.second.norm(dim=1), torch.ones(9, dtype=torch.float64))


def test_default_rates_follow_the_number_of_observations():
    model = SparseVAE(7, 3, n_hidden=8)
    model.initialize(Batch(torch.randn(50, 7)), 500)
    assert (float(model.sparse.spike), float(model.sparse.slab)) == (500.0, 30.0)


def test_pruning_fixes_the_support_and_survives_saving(tmp_path):
    truth = simulate.sparse_vae_toy(n=200, seed=0)
    torch.manual_seed(0)
    model = SparseVAE(7, 3, n_hidden=16, prune_after=0.5)
    fit(
        model,
        ArrayData(truth.x),
        max_epochs=40,
        batch_size=50,
        progress=False,
        optimizer=lambda p: torch.optim.Adam(p, lr=1e-2),
    )
    assert model.pruned
    assert not model.sparse.support.all()
    masked = posterior(model, Batch(truth.x))["W"].mean
    assert torch.equal(masked == 0, ~model.sparse.support)
    again = load(save(model, tmp_path / "model"))
    assert again.pruned
    z = torch.randn(4, 3)
    dense = again.decoder(z, again.loadings * again.sparse.support)
    short = again.decoder(z, again.loadings * again.sparse.support, again.sparse.support)
    torch.testing.assert_close(dense, short, rtol=1e-5, atol=1e-5)


def test_factors_are_ordered_signed_and_without_empty_columns():
    model = SparseVAE(4, 3, n_hidden=8, spike=100.0, slab=1.0).eval()
    with torch.no_grad():
        model.loadings.zero_()
        model.loadings[0, 2], model.loadings[1, 2], model.loadings[2, 0] = -2.0, 1.0, 0.5
        model.sparse.inclusion_rate.fill_(0.3)
    x = torch.randn(10, 4)
    found = factors(model, ArrayData(x), batch_size=3)
    assert found.columns.tolist() == [2, 0]
    sign = torch.sign(found.loadings[[0, 2], [0, 1]])
    expected = torch.tensor([[2.0, 0.0], [-1.0, 0.0], [0.0, 0.5], [0, 0]])
    assert torch.equal(found.loadings, expected * sign)
    mean = posterior(model, Batch(x))["z"].mean
    flip = sign * torch.tensor([-1.0, 1.0])  # the model holds -2 and 0.5
    torch.testing.assert_close(found.scores, mean[:, [2, 0]] * flip)
    largest = found.effects.abs().argmax(0)
    assert (found.effects[largest, [0, 1]] > 0).all()
    assert found.support.sum(0).tolist() == [2, 1]


def test_flipping_the_sign_of_a_factor_changes_no_prediction():
    model = made()
    z = torch.randn(6, 3, dtype=torch.float64)
    flip = torch.tensor([-1.0, 1.0, -1.0], dtype=torch.float64)
    torch.testing.assert_close(
        model.decoder(z * flip, model.loadings * flip), model.decoder(z, model.loadings)
    )


BAD = [
    ({"n_features": 0}, "n_features must be a positive integer, got 0"),
    ({"n_factors": 2.0}, "n_factors must be a positive integer, got 2.0"),
    ({"n_hidden": -3}, "n_hidden must be a positive integer, got -3"),
    ({"spike": -1.0}, "spike must be positive, got -1.0"),
    ({"slab": 0.0}, "slab must be positive, got 0.0"),
    ({"spike": 1.0, "slab": 2.0}, "spike must be larger than slab = 2.0, got 1.0"),
    ({"objective": "vanilla"}, 'objective must be "elbo" or "released", got \'vanilla\''),
    ({"start": "ica"}, 'start must be "random" or "components", got \'ica\''),
    ({"kl_warmup": 1.5}, r"kl_warmup must be a share of the steps in \[0, 1\], got 1.5"),
    ({"prune_after": -0.1}, r"prune_after must be a share of the steps in \[0, 1\], got -0.1"),
]


@pytest.mark.parametrize(("options", "text"), BAD)
def test_bad_arguments_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        SparseVAE(**({"n_features": 4, "n_factors": 2} | options))


def test_binary_data_train():
    torch.manual_seed(0)
    x = (torch.randn(60, 1) * torch.ones(5) + 0.3 * torch.randn(60, 5) > 0).float()
    model = SparseVAE(5, 2, n_hidden=8, likelihood=BernoulliLikelihood(5))
    history = fit(
        model,
        ArrayData(x),
        max_epochs=300,
        progress=False,
        optimizer=lambda p: torch.optim.Adam(p, lr=1e-2),
    )
    independent = nn.functional.binary_cross_entropy(x.mean(0).expand(60, 5), x) * 5
    reconstruction = model.decoder(posterior(model, Batch(x))["z"].mean, model.loadings)
    fitted = nn.functional.binary_cross_entropy_with_logits(reconstruction, x) * 5
    assert fitted < 0.8 * independent
    assert all(math.isfinite(r.loss) for r in history.records)


def test_decoded_effects_of_a_linear_model_are_its_scaled_loadings():
    torch.manual_seed(0)
    model, scores = FactorAnalysis(5, 2), torch.randn(300, 2) * torch.tensor([1.0, 3.0])
    batch = Batch(torch.zeros(300, 5))
    with torch.no_grad():
        model.likelihood.log_scale.copy_(torch.linspace(-1, 1, 5))
    effects = decoded_effects(model, scores, batch)
    size = scores.square().mean(0).sqrt() / model.likelihood.scale.detach().unsqueeze(1)
    torch.testing.assert_close(effects, model.loadings.detach() * size, rtol=1e-4, atol=1e-5)
    assert decoded_effects(nn.Linear(2, 2), scores, batch) is None
