import pytest
import torch

from probinterp.triangular_decoding import (
    SparseCodes,
    by_source,
    by_target,
    prefix_decode,
    reference_decode,
    selected_pre_activations,
    sparse_decode,
    wide_decode,
)

B, L, D, H, K = 7, 4, 5, 6, 2


def made(device, cross_layer=True, dtype=torch.float64, n_tokens=B):
    """Codes with K active latents, and decoders by target."""
    value = torch.rand(n_tokens, L, K, dtype=dtype, device=device) + 0.1
    scores = torch.rand(n_tokens, L, H, device=device)
    codes = SparseCodes(scores.topk(K).indices, value)
    blocks = [j + 1 if cross_layer else 1 for j in range(L)]
    return codes, [torch.randn(n * H, D, dtype=dtype, device=device) for n in blocks]


def gradients(outputs, inputs):
    upstream = torch.linspace(-1, 1, outputs.numel(), dtype=outputs.dtype, device=outputs.device)
    return torch.autograd.grad(outputs, inputs, upstream.view(outputs.shape))


def leaves(tensors):
    return [t.detach().requires_grad_() for t in tensors]


def largest_difference(these, those):
    return max((a - b).abs().max().item() for a, b in zip(these, those, strict=True))


def brute_force(z, weights):
    """Sums written out latent by latent."""
    outputs = z.new_zeros(len(z), L, D)
    for target, weight in enumerate(weights):
        first = target + 1 - len(weight) // H
        for row, decoder in enumerate(weight):
            source, latent = first + row // H, row % H
            outputs[:, target] += z[:, source, latent, None] * decoder
    return outputs


cross_layer = pytest.mark.parametrize("cross_layer", [True, False], ids=["cross", "own"])


@cross_layer
def test_reference_is_the_sum_over_sources_and_latents(device, cross_layer):
    codes, weights = made(device, cross_layer)
    z = codes.dense(H)
    torch.testing.assert_close(reference_decode(z, weights), brute_force(z, weights))


@cross_layer
def test_prefix_view_equals_the_double_loop(device, cross_layer):
    _, weights = made(device, cross_layer)
    found, wanted = [], []
    z = torch.randn(B, L, H, dtype=torch.float64, device=device)
    for decode, kept in ((prefix_decode, found), (reference_decode, wanted)):
        inputs = leaves([z, *weights])
        outputs = decode(inputs[0], inputs[1:])
        kept += [outputs, *gradients(outputs, inputs)]
    assert largest_difference(found, wanted) < 1e-12


@cross_layer
def test_wide_rows_take_dense_codes_too(device, cross_layer):
    codes, weights = made(device, cross_layer)
    z, *packed = leaves([codes.dense(H), *by_source(weights, H)])
    found = wide_decode(z, packed)
    d_z, *d_rows = gradients(found, [z, *packed])
    inputs = leaves([z, *weights])
    wanted = reference_decode(inputs[0], inputs[1:])
    d_wanted, *d_weights = gradients(wanted, inputs)
    assert largest_difference([found, d_z], [wanted, d_wanted]) < 1e-12
    assert largest_difference(by_target(d_rows, D), d_weights) < 1e-12


@cross_layer
def test_sparse_codes_equal_dense_ones(device, cross_layer):
    codes, weights = made(device, cross_layer)
    z, *packed = leaves([codes.dense(H), *weights])
    wanted = reference_decode(z, packed)
    d_z, *d_weights = gradients(wanted, [z, *packed])
    value, *rows = leaves([codes.values, *by_source(weights, H)])
    found = sparse_decode(SparseCodes(codes.indices, value), rows)
    d_value, *d_rows = gradients(found, [value, *rows])
    assert largest_difference([found], [wanted]) < 1e-12
    assert largest_difference([d_value], [d_z.gather(2, codes.indices)]) < 1e-12
    assert largest_difference(by_target(d_rows, D), d_weights) < 1e-12


def test_one_latent_may_be_listed_twice(device):
    index = torch.zeros(1, L, K, dtype=torch.int64, device=device)
    value = torch.tensor([1.0, 2.0], dtype=torch.float64, device=device).expand(1, L, K)
    _, weights = made(device)
    found = sparse_decode(SparseCodes(index, value), by_source(weights, H))
    z = torch.zeros(1, L, H, dtype=torch.float64, device=device)
    z[..., 0] = 3.0
    assert largest_difference([found], [reference_decode(z, weights)]) < 1e-12


@cross_layer
def test_gradients_equal_finite_differences(device, cross_layer):
    codes, weights = made(device, cross_layer, n_tokens=3)
    z = torch.randn(3, L, H, dtype=torch.float64, device=device)
    assert torch.autograd.gradcheck(lambda z, *w: prefix_decode(z, w), leaves([z, *weights]))
    rows = leaves([codes.values, *by_source(weights, H)])
    assert torch.autograd.gradcheck(
        lambda v, *w: sparse_decode(SparseCodes(codes.indices, v), w), rows
    )


def test_selected_latents_give_the_encoder_the_gradients_of_a_gather(device):
    inputs = torch.randn(B, L, D, dtype=torch.float64, device=device)
    weight = torch.randn(L, H, D, dtype=torch.float64, device=device)
    bias = torch.randn(L, H, dtype=torch.float64, device=device)
    indices, found = torch.rand(B, L, H, device=device).topk(K).indices, []
    for selected in (True, False):
        parts = leaves([inputs, weight, bias])
        pre = torch.einsum("bld,lhd->blh", *parts[:2]) + parts[2]
        if selected:
            chosen = selected_pre_activations(*parts, pre, indices)
        else:
            chosen = pre.gather(2, indices)
        found.append([chosen, *gradients(chosen, parts)])
    assert largest_difference(*found) < 1e-12


def test_parts_without_gradient_get_none(device):
    codes, weights = made(device)
    fixed, *trained = leaves([codes.dense(H), *weights])
    outputs = prefix_decode(fixed.detach(), trained)
    assert len(gradients(outputs, trained)) == L
    value = codes.values.requires_grad_()
    outputs = sparse_decode(SparseCodes(codes.indices, value), by_source(weights, H))
    d_z = torch.autograd.grad(prefix_decode(fixed, weights).sum(), fixed)[0]
    d_value = torch.autograd.grad(outputs.sum(), value)[0]
    assert largest_difference([d_value], [d_z.gather(2, codes.indices)]) < 1e-12


@cross_layer
def test_packing_by_source_and_back_changes_nothing(cross_layer):
    _, weights = made("cpu", cross_layer)
    there = by_source(weights, H)
    widths = [(L - i if cross_layer else 1) * D for i in range(L)]
    assert [w.shape for w in there] == [(H, width) for width in widths]
    assert all(torch.equal(a, b) for a, b in zip(by_target(there, D), weights, strict=True))


@pytest.mark.parametrize("which", ["prefix", "sparse"])
def test_bfloat16_products_have_single_precision_gradients(device, which):
    codes, weights = made(device, dtype=torch.float32)
    exact = reference_decode(codes.dense(H), weights)
    if which == "prefix":
        inputs = leaves([codes.dense(H), *weights])
        run = lambda: prefix_decode(inputs[0], inputs[1:])  # noqa: E731
    else:
        inputs = leaves([codes.values, *by_source(weights, H)])
        run = lambda: sparse_decode(SparseCodes(codes.indices, inputs[0]), inputs[1:])  # noqa: E731
    wanted = gradients(run(), inputs)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        outputs = run()
    assert outputs.dtype == torch.bfloat16
    assert (outputs - exact).norm() / exact.norm() < 1e-2
    found = gradients(outputs.float(), inputs)
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() / b.norm() < 1e-2


@pytest.mark.parametrize("which", ["prefix", "sparse"])
def test_a_compiler_gives_equal_numbers(which):
    codes, weights = made("cpu", dtype=torch.float32)
    wanted = reference_decode(codes.dense(H), weights)
    if which == "prefix":
        inputs, decode = leaves([codes.dense(H), *weights]), prefix_decode
        run = lambda z, *w: decode(z, w)  # noqa: E731
    else:
        inputs = leaves([codes.values, *by_source(weights, H)])
        run = lambda v, *w: sparse_decode(SparseCodes(codes.indices, v), w)  # noqa: E731
    torch.compiler.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    outputs = compiled(*inputs)
    torch.testing.assert_close(outputs, wanted, rtol=1e-5, atol=1e-5)
    for a, b in zip(gradients(outputs, inputs), gradients(run(*inputs), inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_outputs_lie_in_memory_layer_by_layer(device):
    codes, weights = made(device)
    outputs = prefix_decode(codes.dense(H), weights)
    assert outputs.transpose(0, 1).is_contiguous()
