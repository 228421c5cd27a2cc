import copy
import math

import pytest
import torch

from probinterp.models.activation_priors import AbsTopK, JumpReLU, ReLUTopK
from probinterp.triangular_decoding import SparseCodes

N, L, H = 40, 3, 9


def allocated(prior, device="cpu"):
    prior.allocate(L, H)
    return prior.to(device)


def pre_activations(device="cpu", dtype=torch.float64):
    return torch.randn(N, L, H, dtype=dtype, device=device)


def gradient(prior, pre):
    """Codes and their gradient for distinct upstream values."""
    pre = pre.detach().requires_grad_()
    upstream = torch.linspace(0.5, 2, pre.numel(), dtype=pre.dtype, device=pre.device)
    upstream = upstream.view(pre.shape)
    codes = prior.moments(pre).mean
    codes.backward(upstream)
    return codes.detach(), pre.grad, upstream


@pytest.mark.parametrize("k", [1, 4, 9])
def test_relu_top_k_keeps_the_largest_positive_ones(device, k):
    pre = pre_activations(device)
    codes, d_pre, upstream = gradient(allocated(ReLUTopK(k), device), pre)
    for row, found, d_found, up in zip(
        *(t.flatten(0, 1) for t in (pre, codes, d_pre, upstream)), strict=True
    ):
        kept = sorted(range(H), key=lambda i: -max(row[i].item(), 0.0))[:k]
        active = [i for i in kept if row[i] > 0]
        wanted = torch.zeros_like(row)
        wanted[active] = row[active]
        assert torch.equal(found, wanted)
        passed = torch.zeros_like(row)
        passed[active] = up[active]
        assert torch.equal(d_found, passed)


@pytest.mark.parametrize("k", [1, 4, 9])
def test_abs_top_k_keeps_exactly_k_with_their_signs(device, k):
    pre = pre_activations(device)
    codes, d_pre, upstream = gradient(allocated(AbsTopK(k), device), pre)
    assert ((codes != 0).sum(2) == k).all()
    smallest = pre.abs().sort(2, descending=True).values[..., k - 1 : k]
    kept = pre.abs() >= smallest
    assert torch.equal(codes, torch.where(kept, pre, 0.0))
    assert torch.equal(d_pre, torch.where(kept, upstream, 0.0))


def test_jump_relu_has_the_gradients_of_its_definition(device):
    threshold, bandwidth = 0.3, 0.8
    prior = allocated(JumpReLU(threshold, bandwidth), device).double()
    pre = pre_activations(device)
    codes, d_pre, upstream = gradient(prior, pre)
    above = pre > prior.threshold
    assert torch.equal(codes, torch.where(above, pre, 0.0))
    assert torch.equal(d_pre, torch.where(above, upstream, 0.0))
    near = (pre - threshold).abs() < bandwidth / 2
    d_threshold = -(threshold / bandwidth) * (near * upstream).sum(0)
    wanted = d_threshold * threshold  # theta = exp(log threshold)
    torch.testing.assert_close(prior.log_threshold.grad, wanted)


def test_jump_relu_penalty_is_the_sum_of_both_losses(device):
    prior = JumpReLU(0.3, sparsity=2.0, tanh_scale=4.0, dead_penalty=0.1)
    prior = allocated(prior, device).double()
    pre, norm = pre_activations(device), torch.rand(L, H, dtype=torch.float64, device=device)
    prior.anneal(0.25)
    found = prior.penalty(pre, lambda: norm)
    wanted = torch.zeros(N, dtype=torch.float64)
    for n in range(N):
        for layer in range(L):
            for i in range(H):
                h, w = pre[n, layer, i].item(), norm[layer, i].item()
                z = h if h > 0.3 else 0.0
                wanted[n] += 0.25 * 2.0 * math.tanh(4.0 * w * z) + 0.1 * max(0.3 - h, 0.0) * w
    torch.testing.assert_close(found.detach().cpu(), wanted, rtol=1e-6, atol=1e-6)
    prior.anneal(1.0)
    assert prior.ramp == 1.0


def test_jump_relu_starts_at_the_wanted_firing_rate():
    prior = JumpReLU(0.03, target_l0=1.0)
    prior.allocate(L, 40)
    pre = torch.randn(5000, L, 40) * 3 + 1
    fires = (pre + prior.initial_bias(pre) > prior.threshold).float().mean((0, 1))
    torch.testing.assert_close(fires, torch.full((40,), 0.1), atol=2e-3, rtol=0)
    prior = JumpReLU(target_l0=100.0)
    prior.allocate(L, 40)
    fires = (pre + prior.initial_bias(pre) > prior.threshold).float().mean((0, 1))
    torch.testing.assert_close(fires, torch.full((40,), 0.5), atol=2e-3, rtol=0)


@pytest.mark.parametrize("prior", [ReLUTopK(3), AbsTopK(3)], ids=["relu", "abs"])
def test_sparse_codes_are_the_dense_ones(prior, device):
    prior, pre = allocated(copy.deepcopy(prior), device), pre_activations(device)
    indices = prior.select(pre)
    codes = SparseCodes(indices, prior.selected(pre.gather(2, indices)))
    assert torch.equal(codes.dense(H), prior.moments(pre).mean)
    assert torch.equal(prior.hard(pre), prior.moments(pre).mean)
    assert torch.equal(prior.inclusion(pre), (prior.hard(pre) != 0).double())


@pytest.mark.parametrize("prior", [ReLUTopK(2), AbsTopK(2)], ids=["relu", "abs"])
def test_the_strongest_dead_latents_are_selected(prior, device):
    prior, pre = allocated(copy.deepcopy(prior), device), pre_activations(device)
    dead = torch.rand(L, H, device=device) < 0.5
    dead[0] = False
    indices = prior.select_dead(pre, dead, 3)
    found = torch.zeros_like(pre).scatter(2, indices, 1.0) * pre * dead
    wanted = allocated(type(prior)(3), device).hard(pre.masked_fill(~dead, 0.0))
    assert torch.equal(prior.selected(found), wanted)
    assert not found[:, 0].any()


@pytest.mark.parametrize(
    "prior", [ReLUTopK(3), AbsTopK(3), JumpReLU(0.2)], ids=["relu", "abs", "jump"]
)
def test_one_layer_alone_gives_the_same_codes(prior):
    prior, pre = allocated(copy.deepcopy(prior)), pre_activations(dtype=torch.float32)
    for parameter in prior.parameters():
        parameter.data.uniform_(-1, 0)
    whole = prior.moments(pre).mean
    for layer in range(L):
        alone = prior.at_layer(layer)
        assert torch.equal(
            alone.moments(pre[:, layer : layer + 1]).mean, whole[:, layer : layer + 1]
        )
    assert prior.moments(pre).mean.shape == (N, L, H)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ReLUTopK(0), "k must be a positive integer, got 0."),
        (lambda: AbsTopK(2.0), "k must be a positive integer, got 2.0."),
        (lambda: ReLUTopK(10).allocate(L, H), "k must be at most n_latents = 9, got 10."),
        (lambda: AbsTopK(10).allocate(L, H), "k must be at most n_latents = 9, got 10."),
        (lambda: JumpReLU(0.0), "threshold must be positive, got 0.0."),
        (lambda: JumpReLU(bandwidth=-1.0), "bandwidth must be positive, got -1.0."),
        (lambda: JumpReLU(sparsity=-1.0), "sparsity must not be negative, got -1.0."),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
