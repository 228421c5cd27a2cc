import copy

import pyro
import pytest
import torch
from pyro import poutine

from probinterp.likelihoods import (
    BernoulliLikelihood,
    GaussianLikelihood,
    MultinomialLikelihood,
    NegativeBinomialLikelihood,
)
from probinterp.models.base import Batch
from probinterp.nn import SparseDecoder, mlp

N, G, K, H = 13, 23, 4, 8
LIKELIHOODS = [
    GaussianLikelihood,
    NegativeBinomialLikelihood,
    BernoulliLikelihood,
    MultinomialLikelihood,
]
DTYPES = {torch.float32: 1e-5, torch.float64: 1e-10}


def loop(decoder, z, loadings):
    """One feature after the other, as in the paper."""
    columns = []
    for w, head, bias in zip(loadings, decoder.heads, decoder.bias, strict=True):
        hidden = torch.relu((w * z) @ decoder.first.T)
        hidden = torch.relu(hidden @ decoder.second.T + decoder.second_bias)
        columns.append(hidden @ head + bias)
    return torch.stack(columns, -1)


def mixed_support():
    """Rows with several, with one and with no factor, in no order."""
    support = torch.rand(G, K) < 0.5
    support[::2] = False
    support[torch.arange(0, G - 4, 2), torch.randint(0, K - 1, (len(range(0, G - 4, 2)),))] = True
    assert {0, 1} < set(support.sum(1).tolist())
    return support


def make(likelihood, dtype, device, **options):
    decoder = SparseDecoder(G, K, H, **options).to(device, dtype)
    x = (torch.rand(N, G) < 0.4).to(device, dtype)
    batch = Batch(x, None, (torch.rand(N) + 0.5).to(device, dtype))
    z = torch.randn(N, K, dtype=dtype).to(device).requires_grad_()
    w = torch.randn(G, K, dtype=dtype).to(device).requires_grad_()
    return decoder, likelihood(G).to(device, dtype), batch, z, w


def assert_same_gradients(value, expected, wrt, tolerance, weight):
    assert (value - expected).norm() <= tolerance * expected.norm()
    gradients = torch.autograd.grad((value * weight).sum(), wrt)
    references = torch.autograd.grad((expected * weight).sum(), wrt)
    for gradient, reference in zip(gradients, references, strict=True):
        assert (gradient - reference).norm() <= tolerance * reference.norm()


def test_mlp_is_the_stack_of_its_layers():
    network, x = mlp([3, 5, 2]), torch.randn(4, 3)
    hidden = torch.relu(x @ network[0].weight.T + network[0].bias)
    torch.testing.assert_close(network(x), hidden @ network[2].weight.T + network[2].bias)
    with pytest.raises(ValueError, match=r"input and output width, got \[3\]"):
        mlp([3])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk_size", [1, 5, G, 4 * G, None])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("unit_norm", [False, True])
def test_forward_equals_the_loop(dtype, chunk_size, sparse, unit_norm, device):
    options = {"chunk_size": chunk_size, "unit_norm": unit_norm}
    decoder, _, _, z, w = make(GaussianLikelihood, dtype, device, **options)
    support = mixed_support().to(device) if sparse else None
    used = w * support if sparse else w
    wrt, weight = [z, w, *decoder.parameters()], torch.randn(N, G, dtype=dtype, device=device)
    eta, expected = decoder(z, w, support), loop(decoder, z, used)
    assert_same_gradients(eta, expected, wrt, DTYPES[dtype], weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("uniform", [False, True])
def test_observe_equals_the_loop(dtype, likelihood, sparse, uniform, device):
    decoder, likelihood, batch, z, w = make(likelihood, dtype, device, chunk_size=6)
    support = mixed_support().to(device) if sparse else None
    used = w * support if sparse else w
    weight = torch.full((N,), 2.5) if uniform else torch.randn(N)
    log_prob = decoder.observe(z, w, likelihood, batch, support).log_prob(batch.x)
    expected = likelihood(loop(decoder, z, used), batch).log_prob(batch.x)
    wrt = [z, w, *decoder.parameters(), *likelihood.parameters()]
    assert_same_gradients(log_prob, expected, wrt, DTYPES[dtype], weight.to(device, dtype))


def test_gradient_check(device):
    decoder, likelihood, batch, z, w = make(GaussianLikelihood, torch.float64, device)
    support = mixed_support().to(device)

    def log_prob(z, w):
        return decoder.observe(z, w, likelihood, batch, support).log_prob(batch.x)

    assert torch.autograd.gradcheck(log_prob, (z, w))


def test_without_gradients_exact_zeros_take_the_short_cut(device):
    decoder, likelihood, batch, z, w = make(GaussianLikelihood, torch.float64, device)
    sparse = w.detach() * mixed_support().to(device)
    expected = loop(decoder, z, sparse)
    with torch.no_grad():
        torch.testing.assert_close(decoder(z, sparse), expected)
        log_prob = decoder.observe(z, sparse, likelihood, batch).log_prob(batch.x)
        torch.testing.assert_close(log_prob, likelihood(expected, batch).log_prob(batch.x))


def test_codes_that_are_exactly_zero(device):
    """Gated factors: at s = 0 both sides of the kink count as inactive, as in torch."""
    decoder, _, _, z, w = make(GaussianLikelihood, torch.float64, device)
    support = torch.zeros(G, K, dtype=torch.bool, device=device)
    support[torch.arange(G), torch.arange(G) % K] = True
    z = (z.detach() * (torch.arange(N, device=device) % 2).unsqueeze(1)).requires_grad_()
    with torch.no_grad():
        decoder.second_bias[:3] = 0.0
    wrt, weight = [z, w, *decoder.parameters()], torch.ones((), device=device)
    eta, expected = decoder(z, w, support), loop(decoder, z, w * support)
    assert_same_gradients(eta, expected, wrt, 1e-10, weight)


def test_support_changed_in_place_is_noticed(device):
    decoder, _, _, z, w = make(GaussianLikelihood, torch.float64, device)
    support = mixed_support().to(device)
    decoder(z, w, support)
    support.copy_(support.flip(0))
    torch.testing.assert_close(decoder(z, w, support), loop(decoder, z, w * support))
    torch.testing.assert_close(copy.deepcopy(decoder)(z, w, support), decoder(z, w, support))


def test_units_that_never_switch(device):
    """Zero weights in M make breakpoints infinite or undefined."""
    decoder, _, _, z, w = make(GaussianLikelihood, torch.float64, device, unit_norm=False)
    with torch.no_grad():
        decoder.second_direction[:2] = 0.0
        decoder.second_direction[2] = 1e-200
        decoder.second_bias[:4] = torch.tensor([0.5, -0.5, 0.5, 0.0])
    support = torch.zeros(G, K, dtype=torch.bool, device=device)
    support[:, 0] = True
    torch.testing.assert_close(decoder(z, w, support), loop(decoder, z, w * support))


def test_rescaling_of_the_free_scales_leaves_the_output_unchanged(device):
    decoder, _, _, z, w = make(GaussianLikelihood, torch.float64, device, unit_norm=False)
    before = decoder(z, w)
    columns, scale = torch.rand(K, dtype=torch.float64, device=device) + 0.5, 3.0
    with torch.no_grad():
        decoder.first_direction /= columns
        decoder.second_direction /= scale
    torch.testing.assert_close(decoder(z, w * columns * scale), before, rtol=1e-10, atol=1e-10)


def test_unit_norms_hold_whatever_the_directions(device):
    decoder, _, _, z, w = make(GaussianLikelihood, torch.float64, device)
    before, ones = decoder(z, w), torch.ones(H, dtype=torch.float64, device=device)
    with torch.no_grad():
        decoder.first_direction *= torch.rand(K, dtype=torch.float64, device=device) + 0.5
        decoder.second_direction *= torch.rand(H, 1, dtype=torch.float64, device=device) + 0.5
    torch.testing.assert_close(decoder(z, w), before)
    torch.testing.assert_close(decoder.first.norm(dim=0), ones[:K])
    torch.testing.assert_close(decoder.second.norm(dim=1), ones)


def test_leading_dimensions_of_the_codes(device):
    decoder, likelihood, batch, _, w = make(NegativeBinomialLikelihood, torch.float64, device)
    z = torch.randn(3, N, K, dtype=torch.float64, device=device)
    expected = torch.stack([loop(decoder, draw, w) for draw in z])
    torch.testing.assert_close(decoder(z, w), expected)
    observed = decoder.observe(z, w, likelihood, batch)
    assert observed.batch_shape == (3, N)
    log_prob = likelihood(expected, batch).log_prob(batch.x)
    torch.testing.assert_close(observed.log_prob(batch.x), log_prob)


def test_nothing_of_size_pairs_times_hidden_is_kept(device):
    decoder, likelihood, batch, z, w = make(GaussianLikelihood, torch.float32, device)
    sizes = []

    def record(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        decoder(z, w).sum()
        decoder.observe(z, w, likelihood, batch).log_prob(batch.x).sum()
    assert max(sizes) <= max(G * H, N * G) < N * G * H


def test_distribution_decodes_for_moments_and_draws(device):
    decoder, likelihood, batch, z, w = make(GaussianLikelihood, torch.float64, device)
    observed, eta = decoder.observe(z, w, likelihood, batch), loop(decoder, z, w)
    assert (observed.batch_shape, observed.event_shape) == ((N,), (G,))
    torch.testing.assert_close(observed.mean, eta)
    torch.testing.assert_close(observed.variance, likelihood.scale.square().expand(N, G))
    draws = observed.sample((4000,))
    assert ((draws.mean(0) - eta).abs() < 5 * likelihood.scale / 4000**0.5).all()
    assert observed.expand((N,)) is observed
    expanded = observed.expand((2, N))
    assert expanded.batch_shape == (2, N)
    torch.testing.assert_close(expanded.log_prob(batch.x)[1], observed.log_prob(batch.x))
    torch.testing.assert_close(
        observed.log_prob(draws[:2]), likelihood(eta, batch).log_prob(draws[:2])
    )


def test_observed_site_in_a_subsampled_plate(device):
    decoder, likelihood, batch, z, w = make(GaussianLikelihood, torch.float64, device)

    def model():
        with pyro.plate("obs", 5 * N, subsample_size=N):
            pyro.sample("x", decoder.observe(z, w, likelihood, batch), obs=batch.x)

    total = poutine.trace(model).get_trace().log_prob_sum()
    expected = 5 * likelihood(loop(decoder, z, w), batch).log_prob(batch.x).sum()
    wrt = [z, w, *decoder.parameters(), *likelihood.parameters()]
    assert_same_gradients(total, expected, wrt, 1e-10, torch.ones((), device=device))


def test_values_outside_the_support_are_refused():
    decoder, likelihood, batch, z, w = make(NegativeBinomialLikelihood, torch.float32, "cpu")
    with pyro.validation_enabled(True), pytest.raises(ValueError, match="within the support"):
        decoder.observe(z, w, likelihood, batch).log_prob(batch.x - 2)


def test_autocast_rounds_the_hidden_products_only(device):
    decoder, likelihood, batch, z, w = make(GaussianLikelihood, torch.float32, device)
    wrt = [z, w, *decoder.parameters(), *likelihood.parameters()]
    with torch.autocast(device.type, dtype=torch.bfloat16):
        log_prob = decoder.observe(z.bfloat16(), w, likelihood, batch).log_prob(batch.x)
        eta = decoder(z, w)
    expected = likelihood(loop(decoder, z, w), batch).log_prob(batch.x)
    assert log_prob.dtype == eta.dtype == torch.float32
    difference = (eta - loop(decoder, z, w)).norm() / eta.norm()
    assert 1e-5 < difference < 1e-2
    assert_same_gradients(log_prob, expected, wrt, 0.05, torch.ones((), device=device))


def test_arguments_are_checked():
    decoder, _, _, z, w = make(GaussianLikelihood, torch.float32, "cpu")
    with pytest.raises(ValueError, match=r"loadings must be \(G, K\) = \(23, 4\), got \(22, 4\)"):
        decoder(z, w[1:])
    with pytest.raises(ValueError, match=r"z must have 4 factors, got \(13, 3\)"):
        decoder(z[:, 1:], w)
    with pytest.raises(ValueError, match="support must be boolean"):
        decoder(z, w, torch.ones(G, K))
    with pytest.raises(ValueError, match="chunk_size must be positive, got 0"):
        SparseDecoder(G, K, H, chunk_size=0)


def test_empty_batch_and_single_feature():
    decoder = SparseDecoder(1, 1, 3)
    assert decoder(torch.zeros(0, 1), torch.ones(1, 1)).shape == (0, 1)
    z, w = torch.randn(4, 1), torch.ones(1, 1, requires_grad=True)
    torch.testing.assert_close(decoder(z, w), loop(decoder, z, w))
