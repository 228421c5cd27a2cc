"""Per-image statistics of reconstructions against the formulas on whole arrays."""

import pytest
import torch
from torch import nn

from probinterp.inference import BatchData, reconstruction_statistics
from probinterp.models import (
    ActivationBatch,
    CrossLayerTranscoder,
    IdentityProxy,
    MeanProxy,
    RidgeProxy,
)
from probinterp.models.activation_priors import ReLUTopK

N, L, D, H, IMAGES = 120, 3, 4, 6, 20


def tokens():
    inputs = torch.randn(N, L, D)
    x = torch.stack([inputs[:, j] @ torch.randn(D, D) for j in range(L)], 1)
    x = x + 0.3 * torch.randn(N, L, D) + 2.0
    image = 10 * (torch.arange(N) % IMAGES)  # tokens of an image are far apart
    return ActivationBatch(x, inputs, image, torch.arange(N) // IMAGES % 3)


def transcoder(batch):
    model = CrossLayerTranscoder(L, D, H, activation=ReLUTopK(2))
    model.initialize(batch, N)
    for parameter in model.decoders.parameters():
        parameter.data.normal_(0, 0.5)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [7, 120])
def test_metrics_are_those_of_all_tokens_together(batch_size):
    batch = tokens()
    model = transcoder(batch).double()
    batch = batch._replace(x=batch.x.double(), inputs=batch.inputs.double())
    found = reconstruction_statistics(model, BatchData(batch), batch_size=batch_size)
    y, y_hat = batch.x, model(batch.inputs)
    error = (y - y_hat).square().sum((0, 2))
    nmse = error / (y - y.mean(0)).square().sum((0, 2))
    assert torch.equal(found.image, 10 * torch.arange(IMAGES))
    torch.testing.assert_close(found.nmse(), nmse, rtol=1e-10, atol=0)
    torch.testing.assert_close(found.r2(), 1 - nmse, rtol=1e-9, atol=0)
    torch.testing.assert_close(found.mse(), error / (N * D), rtol=1e-10, atol=0)
    cosine = torch.cosine_similarity(y, y_hat, dim=2).mean(0)
    torch.testing.assert_close(found.mean_cosine(), cosine, rtol=1e-10, atol=0)
    active = model.encode(batch.inputs) != 0
    torch.testing.assert_close(found.l0(), active.double().sum(2).mean(0))
    torch.testing.assert_close(found.expected_l0(), active.double().sum(2).mean(0))
    assert torch.equal(found.fired, active.sum(0))
    torch.testing.assert_close(found.unused(), (~active.any(0)).double().mean(1))


@torch.no_grad()
def test_weights_stand_for_copies_of_images():
    batch = tokens()
    model = transcoder(batch)
    found = reconstruction_statistics(model, batch)
    weights = torch.randint(0, 3, (4, IMAGES)).double()
    for row, nmse, cosine, l0 in zip(
        weights,
        found.nmse(weights),
        found.mean_cosine(weights),
        found.l0(weights),
        strict=True,
    ):
        of_token = row[(batch.image // 10)].long()
        copies = batch.rows(torch.arange(N).repeat_interleave(of_token))
        alone = reconstruction_statistics(model, copies)
        torch.testing.assert_close(alone.nmse(), nmse, rtol=1e-9, atol=0)
        torch.testing.assert_close(alone.mean_cosine(), cosine, rtol=1e-9, atol=0)
        torch.testing.assert_close(alone.l0(), l0, rtol=1e-9, atol=0)


@torch.no_grad()
def test_tokens_of_one_type_only():
    batch = tokens()
    model = transcoder(batch)
    found = reconstruction_statistics(model, batch, token_type=1)
    patches = batch.rows(batch.token_type == 1)
    torch.testing.assert_close(found.nmse(), reconstruction_statistics(model, patches).nmse())
    with pytest.raises(ValueError, match="there is no token of type 7"):
        reconstruction_statistics(model, batch, token_type=7)
    with pytest.raises(ValueError, match="types are unknown"):
        reconstruction_statistics(model, batch._replace(token_type=None), token_type=1)


def test_without_images_every_token_is_one():
    batch = tokens()._replace(image=None)
    found = reconstruction_statistics(transcoder(batch), batch, batch_size=50)
    assert torch.equal(found.image, torch.arange(N))


@torch.no_grad()
def test_baselines_have_the_r2_that_they_stand_for():
    batch = tokens()
    halves = [batch.rows(slice(0, 50)), batch.rows(slice(50, N))]
    mean = reconstruction_statistics(MeanProxy.fitted(halves), batch)
    torch.testing.assert_close(mean.r2(), torch.zeros(L, dtype=torch.float64), atol=1e-6, rtol=0)
    assert mean.l0() is None
    assert mean.unused() is None
    layers = [nn.Sequential(nn.Linear(D, 9), nn.GELU(), nn.Linear(9, D)) for _ in range(L)]
    outputs = torch.stack([layer(batch.inputs[:, i]) for i, layer in enumerate(layers)], 1)
    same = reconstruction_statistics(IdentityProxy(layers, D), batch._replace(x=outputs))
    assert torch.equal(same.error, torch.zeros(IMAGES, L, dtype=torch.float64))


@torch.no_grad()
def test_ridge_regression_is_least_squares_without_penalty():
    batch = tokens()
    halves = [batch.rows(slice(0, 50)), batch.rows(slice(50, N))]
    proxy = RidgeProxy.fitted(halves, penalty=0.0)
    ones = torch.ones(N, 1, dtype=torch.float64)
    for layer in range(L):
        design = torch.cat([batch.inputs[:, layer].double(), ones], 1)
        best = torch.linalg.lstsq(design, batch.x[:, layer].double()).solution
        torch.testing.assert_close(proxy.weight[layer].double(), best[:-1], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(proxy.bias[layer].double(), best[-1], atol=1e-5, rtol=1e-5)
    penalty = 0.7
    shrunk = RidgeProxy.fitted([batch], penalty=penalty)
    x = (batch.inputs - batch.inputs.mean(0)).double()[:, 0]
    y = (batch.x - batch.x.mean(0)).double()[:, 0]
    lam = penalty * x.square().mean() * N
    wanted = torch.linalg.solve(x.mT @ x + lam * torch.eye(D), x.mT @ y)
    torch.testing.assert_close(shrunk.weight[0].double(), wanted, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="penalty must not be negative, got -1"):
        RidgeProxy.fitted([batch], penalty=-1.0)
    with pytest.raises(ValueError, match="batches hold no token"):
        RidgeProxy.fitted([])


@torch.no_grad()
def test_proxies_without_codes_have_the_surface_of_a_transcoder():
    batch = tokens()
    proxy = RidgeProxy.fitted([batch])
    assert proxy.encode(batch.inputs).shape == (N, L, 0)
    codes = [proxy.encode_layer(batch.inputs[:, i], i) for i in range(L)]
    found = proxy.decode_target(codes, 1, batch.inputs[:, 1])
    torch.testing.assert_close(found, proxy(batch.inputs)[:, 1])
    with pytest.raises(ValueError, match="RidgeProxy needs the inputs of the layer"):
        proxy.decode_target(codes, 1)
