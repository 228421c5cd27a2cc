import pytest
import torch

from probinterp.inference import fit
from probinterp.models import ActivationBatch, CrossLayerTranscoder
from probinterp.models.activation_priors import BernoulliTruncatedNormal
from probinterp.simulate.transcoder import PlantedTranscoder
from probinterp.transcoder_recovery import (
    FeatureMatch,
    gate_calibration,
    match_features,
    normalized_error,
    support_f1,
)


def test_features_are_matched_by_the_direction_they_write_in():
    true = torch.randn(2, 3, 8)
    order = torch.tensor([2, 0, 1])
    found = torch.cat([-3 * true[:, order], torch.zeros(2, 1, 8)], 1)
    match = match_features(found, true)
    assert torch.equal(match.latent, order.argsort().expand(2, 3))
    torch.testing.assert_close(match.cosine, torch.ones(2, 3))


def test_f1_counts_tokens_and_matched_features():
    true = torch.tensor([[[1.0, 0.0]], [[1.0, 2.0]], [[0.0, 0.0]]])
    found = torch.tensor([[[0.0, 0.5, 9.0]], [[0.0, 0.0, 9.0]], [[0.3, 0.0, 9.0]]])
    match = match_features(
        torch.tensor([[[0.0, 1.0], [1.0, 0.0], [-1.0, -1.0]]]), torch.eye(2).unsqueeze(0)
    )
    assert match.latent.tolist() == [[1, 0]]
    # feature 0 is found for the first token and missed for the second; feature 1 is missed for
    # the second and found for the third, which does not have it
    assert support_f1(found, true, match).tolist() == pytest.approx([2 * 1 / (2 + 3)])
    assert support_f1(true[..., [1, 0]], true, match).item() == 1.0


def test_probabilities_are_compared_with_how_often_features_are_active():
    torch.manual_seed(0)
    inclusion = torch.rand(50_000, 2, 3, dtype=torch.float64)
    match = FeatureMatch(torch.tensor([[2, 0], [1, 1]]), torch.ones(2, 2))
    matched = torch.stack([inclusion[:, 0, [2, 0]], inclusion[:, 1, [1, 1]]], 1)
    found = gate_calibration(inclusion, (torch.rand_like(matched) < matched).double(), match)
    assert found.n.sum() == matched.numel()
    centres = torch.linspace(0.05, 0.95, 10, dtype=torch.float64)
    torch.testing.assert_close(found.predicted, centres, atol=0.003, rtol=0)
    torch.testing.assert_close(found.observed, centres, atol=0.015, rtol=0)
    assert found.error < 0.01
    timid = gate_calibration(inclusion / 2, (matched > 0).double(), match)
    assert timid.error.item() == pytest.approx(0.75, abs=0.005)
    assert timid.predicted[5:].isnan().all()


def test_the_error_is_relative_to_that_of_the_mean():
    x = torch.randn(50, 2, 3)
    mean = x.mean(0).expand_as(x)
    torch.testing.assert_close(normalized_error(mean, x), torch.ones(2))
    half = (x + mean) / 2
    torch.testing.assert_close(normalized_error(half, x), torch.full((2,), 0.25))


class FreshTokens:
    def __init__(self, planted, n):
        self.planted, self.n = planted, n

    def __len__(self):
        return self.n

    def batch(self, index):
        drawn = self.planted.tokens(len(index))
        return ActivationBatch(drawn.x, drawn.inputs)


@pytest.mark.slow
def test_spike_and_slab_codes_find_planted_features():
    planted = PlantedTranscoder(100)
    torch.manual_seed(0)
    model = CrossLayerTranscoder(
        3, 16, 32, activation=BernoulliTruncatedNormal(1.92, learn_rate=False)
    )
    fit(
        model,
        FreshTokens(planted, 512 * 200),
        max_epochs=10,
        batch_size=512,
        optimizer=lambda p: torch.optim.Adam(p, lr=3e-3),
        schedule=lambda progress: min(1.0, (1 - progress) / 0.3),
        max_grad_norm=10.0,
        device="cpu",
        progress=False,
    )
    held_out = planted.tokens(20_000)
    blank = torch.zeros(32, 16)
    decoders = [[model.decoder(i, j) if i <= j else blank for j in range(3)] for i in range(3)]
    match = match_features(torch.stack([torch.cat(row, 1) for row in decoders]), planted.decoders())
    with torch.no_grad():
        codes = model.hard_codes(held_out.inputs)
        error = normalized_error(model.decode(codes), held_out.x).mean()
    assert error < 0.11  # the best 3 of all pre-activations leave 0.127
    assert abs((codes != 0).sum(2).float().mean() - 1.92) < 0.25
    assert support_f1(codes, held_out.codes, match).mean() > 0.9
    assert match.cosine.mean() > 0.985
