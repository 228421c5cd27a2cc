"""Factors of models with blocks: order, names, and effects within the gate."""

import sys

import pytest
import torch

from probinterp.inference import ArrayData, factors
from probinterp.inference.posterior import decoded_effects
from probinterp.models import Batch, MultiStudySparseVAE

N = 60
STUDY = torch.arange(N) % 3


@pytest.fixture
def model():
    """Blocks: shared 0 and 1, then 2 and 3 of study 0, 4 and 5 of study 1, 6 and 7 of study 2."""
    model = MultiStudySparseVAE(6, 2, 2, 3, n_hidden=8, spike=100.0, slab=1.0).eval()
    sizes = [1, 3, 2, 4, 0, 1, 2, 0]
    with torch.no_grad():
        model.loadings.zero_()
        for column, size in enumerate(sizes):
            model.loadings[:size, column] = 1.0
        model.sparse.inclusion_rate.fill_(0.3)
    return model


def test_columns_are_ordered_by_block_then_by_size(model):
    found = factors(model, ArrayData(torch.randn(N, 6), study=STUDY))
    assert found.columns.tolist() == [1, 0, 3, 2, 5, 6]
    assert found.block.tolist() == [-1, -1, 0, 0, 1, 2]
    assert found.support.sum(0).tolist() == [3, 1, 4, 2, 1, 2]
    assert found.names == ["shared_1", "shared_2", "study0_1", "study0_2", "study1_1", "study2_1"]
    assert found.named(("a", "b", "c"))[2:] == ["a_1", "a_2", "b_1", "c_1"]
    outside = STUDY.unsqueeze(1) != found.block
    assert (found.scores[outside & (found.block >= 0)] == 0).all()


def test_effects_of_a_specific_factor_are_those_in_its_study(model):
    batch = Batch(torch.randn(N, 6), STUDY)
    scores = torch.randn(N, 8) * model.gates[STUDY]
    effects = decoded_effects(model, scores, batch)
    own = STUDY == 0
    within = decoded_effects(model, scores[own], batch.rows(own))
    torch.testing.assert_close(effects[:, 2:4], within[:, 2:4])
    assert (within[:, 2:4].abs().sum(0) > 0).all()
    assert not torch.allclose(effects[:, :2], within[:, :2])  # shared: over all studies
    assert (within[:, 4:] == 0).all()  # no row there


def test_effects_see_every_study_of_large_data(model, monkeypatch):
    module = sys.modules[decoded_effects.__module__]
    monkeypatch.setattr(module, "EFFECT_ROWS", 40)
    monkeypatch.setattr(module, "STUDY_ROWS", 5)
    study = torch.cat([torch.zeros(380), torch.ones(17), torch.full((3,), 2)]).long()
    seen = []
    plain = ArrayData(torch.randn(400, 6), study=study)
    original = plain.batch
    plain.batch = lambda index=None: seen.append(index) or original(index)
    found = factors(model, plain)
    rows = seen[-1]
    assert study[rows].bincount().tolist() == [38, 5, 3]
    assert (rows.diff() > 0).all()
    assert rows[:38].max() >= 360  # spread, not the first ones
    assert (found.effects[:, found.block == 2].abs().sum(0) > 0).all()


def test_unknown_studies_have_shared_scores_only(model):
    found = factors(model, ArrayData(torch.randn(9, 6), study=torch.full((9,), -1)))
    assert (found.scores[:, found.block >= 0] == 0).all()
    assert (found.effects[:, found.block >= 0] == 0).all()
    assert (found.scores[:, found.block < 0] != 0).all()
    assert torch.isfinite(found.effects).all()
