"""What every model must do, whatever it is."""

import math
import sys
from pathlib import Path

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

from probinterp.inference import MeanFieldELBO, fit, predictive_draws
from probinterp.inference.data import data_of
from probinterp.inference.sites import sites_of

sys.path.append(str(Path(__file__).parent))
from cases import MODELS, batch_for  # noqa: E402

each_model = pytest.mark.parametrize("name", MODELS)


def made(name, n_total=40):
    torch.manual_seed(0)
    model, batch = MODELS[name](), batch_for(name)
    model.initialize(batch, n_total)
    return model, batch


@each_model
def test_guide_covers_exactly_the_latent_sites(name):
    model, batch = made(name)
    latent = set(poutine.trace(model.model).get_trace(batch).stochastic_nodes)
    assert set(poutine.trace(model.guide).get_trace(batch).stochastic_nodes) == latent


@each_model
def test_loss_equals_pyro_on_the_same_draws(name):
    model, batch = made(name)
    losses = []
    for elbo in (MeanFieldELBO(), TraceMeanField_ELBO()):
        torch.manual_seed(3)
        model.zero_grad()
        loss = elbo.differentiable_loss(model.model, model.guide, batch, 400)
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        losses.append((loss.detach(), gradient))
    torch.testing.assert_close(losses[0][0], losses[1][0], rtol=2e-6, atol=1e-4)
    torch.testing.assert_close(losses[0][1], losses[1][1], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["FactorAnalysis", "VAE", "SparseVAE", "SparseVAE-counts"])
def test_closed_form_divergence_equals_sampling_on_average(name):
    model, batch = made(name)

    def sample(elbo):
        with torch.no_grad():
            loss = elbo.differentiable_loss(model.model, model.guide, batch)
        return float(loss)

    closed = torch.tensor([sample(MeanFieldELBO()) for _ in range(300)])
    sampled = torch.tensor([sample(Trace_ELBO()) for _ in range(300)])
    error = math.sqrt((closed.var() + sampled.var()) / 300)
    assert abs(closed.mean() - sampled.mean()) < 4 * error + 1e-3


@each_model
@torch.no_grad()
def test_minibatch_losses_average_to_the_full_loss(name):
    model, batch = made(name)
    if "released" in name:
        pytest.skip("the released loss scales the penalty with the batch size by design")
    n, parts = 40, torch.arange(40).split(10)
    sites = sites_of(model.guide, batch, n)

    def loss(index):
        rows = batch.rows(index)
        values = {k: s.value[index] if s.local else s.value for k, s in sites.items()}
        traced = poutine.trace(poutine.condition(model.model, data=values))
        return float(traced.get_trace(rows, n).log_prob_sum())

    average = sum(loss(part) for part in parts) / len(parts)
    assert average == pytest.approx(loss(torch.arange(n)), rel=1e-4)


@each_model
def test_models_leave_pyros_global_store_alone(name):
    pyro.clear_param_store()
    pyro.param("mine", torch.tensor(1.0))
    model, batch = made(name)
    other = MODELS[name]()
    before = [p.clone() for p in other.parameters()]
    fit(model, data_of(batch), max_epochs=2, progress=False)
    assert list(pyro.get_param_store().keys()) == ["mine"]
    assert all(torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))
    pyro.clear_param_store()


@each_model
@pytest.mark.parametrize("n", [1, 2, 33])
def test_odd_sizes_train_and_predict(name, n):
    torch.manual_seed(0)
    model, batch = MODELS[name](), batch_for(name, n=n)
    if n == 1 and name == "FactorAnalysis":
        pytest.skip("one observation has no principal component")
    if n < 4 and name.startswith("MultiStudySparseVAE"):
        pytest.skip("a study of one observation is refused")
    history = fit(model, data_of(batch), max_epochs=3, batch_size=16, progress=False)
    assert all(math.isfinite(r.loss) for r in history.records)
    draw = next(iter(predictive_draws(model, batch, 2, seed=1)))
    assert draw.replicate().shape == batch.x.shape
    assert torch.isfinite(draw.likelihood(batch.x).log_prob(batch.x)).all()


@each_model
def test_training_lowers_the_loss(name):
    model, batch = made(name)
    data = data_of(batch)
    adam = lambda p: torch.optim.Adam(p, lr=1e-2)  # noqa: E731
    history = fit(model, data, max_epochs=60, batch_size=20, optimizer=adam, progress=False)
    losses = [r.loss for r in history.records]
    start = losses[0] if "VAE" not in name else max(losses[:30])
    assert min(losses[-5:]) < start
