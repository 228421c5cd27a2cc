import math

import pytest
import torch

from probinterp.inference import ArrayData, effective_factors
from probinterp.inference.effective_factors import _effective
from probinterp.models import MultiStudySparseVAE, SparseVAE


def test_effective_number_is_the_exponential_of_the_entropy():
    assert _effective(torch.tensor([1.0, 1.0, 0.0, 1.0])) == pytest.approx(3)
    shares = torch.tensor([0.7, 0.2, 0.1])
    expected = math.exp(-sum(p * math.log(p) for p in shares.tolist()))
    assert _effective(5 * shares) == pytest.approx(expected)
    assert _effective(torch.zeros(2)) == 0


def test_blocks_are_counted_and_empty_columns_cost_log_two():
    torch.manual_seed(0)
    model = MultiStudySparseVAE(20, 3, 2, 2, n_hidden=8, spike=50.0, slab=1.0)
    data = ArrayData(torch.randn(40, 20), study=torch.arange(40) % 2)
    model.initialize(data.batch(), 40)
    with torch.no_grad():
        model.loadings.zero_()
        model.loadings[:5, 0] = model.loadings[5:9, 1] = model.loadings[:3, 3] = 1.0
    model.sparse.update((model.loadings != 0).float())
    found = effective_factors(model, data)
    assert found.block.tolist() == [-1, 0, 1]
    assert found.n_columns.tolist() == [3, 2, 2]
    assert found.n_active.tolist() == [2, 1, 0]
    assert 1 < found.effective[0] <= 2
    assert found.effective[1] == pytest.approx(1)
    assert found.effective[2] == 0
    assert found.cost[2] == pytest.approx(2 * math.log(2), abs=1e-4)
    assert found.cost[0] > found.cost[1] > found.cost[2]


def test_a_model_of_one_study_has_one_block():
    model = SparseVAE(10, 4, n_hidden=8)
    found = effective_factors(model, ArrayData(torch.randn(30, 10)))
    assert found.block.tolist() == [-1]
    assert found.n_columns.tolist() == [4]
