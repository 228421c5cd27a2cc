"""Sparsity can make a transcoder rewrite a circuit of two steps as one: right and yet wrong.

Published as a warning by Lange, Dearstyne and Maher (2026); here the smallest case, by hand.
"""

import pytest
import torch

from probinterp.models import ActivationBatch, CrossLayerTranscoder
from probinterp.models.activation_priors import ReLUTopK


def boolean_circuit():
    """All inputs (a, b, c, e): layer 0 writes ab and ce, layer 1 reads them and writes abce."""
    bits = torch.tensor([-1.0, 1.0])
    inputs = torch.cartesian_prod(bits, bits, bits, bits)
    pairs = torch.stack([inputs[:, 0] * inputs[:, 1], inputs[:, 2] * inputs[:, 3]], 1)
    blank = torch.zeros(16, 2)
    read = torch.stack([inputs, torch.cat([pairs, blank], 1)], 1)
    whole = torch.cat([pairs.prod(1, keepdim=True), blank, blank[:, :1]], 1)
    return ActivationBatch(torch.stack([torch.cat([pairs, blank], 1), whole], 1), read)


def bare(n_latents, k, **options):
    model = CrossLayerTranscoder(
        2, 4, n_latents, activation=ReLUTopK(k), normalize=False, layout="target", **options
    )
    for parameter in model.parameters():
        parameter.data.zero_()
    return model.eval()


@torch.no_grad()
def faithful(cross_layer=True):
    """Two detectors of pairs fire in layer 0, one in layer 1."""
    model = bare(8, 2, cross_layer=cross_layer)
    signs = torch.cartesian_prod(torch.tensor([-1.0, 1.0]), torch.tensor([-1.0, 1.0]))
    model.encoder.weight[0, :4, :2] = signs
    model.encoder.weight[0, 4:, 2:] = signs
    model.encoder.weight[1, :4, :2] = signs
    model.encoder.bias[0], model.encoder.bias[1, :4] = -1.0, -1.0
    model.decoder(0, 0)[:4, 0] = signs.prod(1)
    model.decoder(0, 0)[4:, 1] = signs.prod(1)
    model.decoder(1, 1)[:4, 0] = signs.prod(1)
    return model


@torch.no_grad()
def shortcut():
    """One detector of all four inputs fires in layer 0 and writes to both layers."""
    model, batch = bare(16, 1), boolean_circuit()
    model.encoder.weight[0] = batch.inputs[:, 0]
    model.encoder.bias[0] = -3.0
    model.decoder(0, 0)[:] = batch.x[:, 0]
    model.decoder(0, 1)[:] = batch.x[:, 1]
    return model


@torch.no_grad()
def shares(model, batch):
    """Contribution of each layer to the outputs of layer 1, averaged over inputs."""
    z = model.encode(batch.inputs)
    parts = torch.stack([z[:, i] @ model.decoder(i, 1) for i in range(2)])
    whole = parts.sum(0)
    return ((parts * whole).sum(2) / whole.square().sum(1)).mean(1)


@torch.no_grad()
def test_a_shortcut_through_depth_is_sparser_and_wrong():
    batch = boolean_circuit()
    for model, n_active, contributions in (
        (faithful(), [2, 1], [0.0, 1.0]),
        (shortcut(), [1, 0], [1.0, 0.0]),
    ):
        assert torch.equal(model(batch.inputs), batch.x)
        active = (model.encode(batch.inputs) != 0).sum(2)
        assert torch.equal(active, torch.tensor(n_active).expand(16, 2))
        assert torch.equal(shares(model, batch), torch.tensor(contributions))
    own = faithful(cross_layer=False)
    assert torch.equal(own(batch.inputs), batch.x)


@torch.no_grad()
def test_codes_of_pairs_cannot_write_the_last_output():
    batch = boolean_circuit()
    codes = faithful().encode(batch.inputs)[:, 0]
    design = torch.cat([codes, torch.ones(16, 1)], 1).double()
    target = batch.x[:, 1, :1].double()
    best = design @ torch.linalg.lstsq(design, target, driver="gelsd").solution
    assert (target - best).square().mean().item() == pytest.approx(1.0, abs=1e-12)
