import pytest
import torch

from probinterp import factors, fit, posterior, simulate
from probinterp.inference import ArrayData
from probinterp.inference.block_check import _clear, _copy, block_check, mend_blocks
from probinterp.inference.screening import screen_specific
from probinterp.inference.stability import Stability, match_factors, refitting, stability
from probinterp.inference.svi import late_cosine
from probinterp.models import MultiStudySparseVAE

OPTIONS = {
    "batch_size": 100,
    "progress": False,
    "schedule": late_cosine,
    "optimizer": lambda p: torch.optim.Adam(p, lr=1e-2),
}


def made():
    return MultiStudySparseVAE(54, 6, 2, 3, n_hidden=32, spike=300.0, slab=10.0, kl_warmup=0.2)


@pytest.fixture(scope="module")
def fitted():
    truth = simulate.multistudy(seed=1)
    data = ArrayData(truth.x, study=truth.study)
    torch.manual_seed(0)
    model = made()
    fit(model, data, max_epochs=80, seed=0, **OPTIONS)
    return truth, data, model


def unused(model, block):
    reached = (model.loadings.abs() > 0.01) & (model.inclusion_probability > 0.5)
    return int((~reached.any(0) & (model.block == block)).nonzero()[0])


def specific_column(model, truth, data, study):
    z = posterior(model, data.batch())["z"].mean
    rows = truth.study == study
    target = truth.z[rows, 3 + study]
    r = [torch.stack([z[rows, k], target]).corrcoef()[0, 1].abs().nan_to_num() for k in range(12)]
    own = (model.block == study).nonzero().flatten().tolist()
    return max(own, key=lambda k: r[k]), max(float(r[k]) for k in own)


def test_a_good_fit_passes(fitted):
    _, data, model = fitted
    check = block_check(model, data)
    assert check.passed
    assert check.ratio.max() < 2
    assert check.active.all()
    assert (check.effect > 0).all()


def test_a_specific_factor_in_a_shared_column_is_found_and_moved_back(fitted):
    truth, data, model = fitted
    hidden = made()
    hidden.load_state_dict(model.state_dict())
    own, before = specific_column(model, truth, data, 2)
    column = unused(model, -1)
    with torch.no_grad():
        _copy(hidden, own, column)
        _clear(hidden, own, torch.Generator().manual_seed(0))
    check = block_check(hidden, data)
    position = check.columns.tolist().index(column)
    assert bool(check.misplaced[position])
    assert check.active[:, position].tolist() == [False, False, True]
    mended = mend_blocks(hidden, data, max_epochs=80, **OPTIONS)
    assert mended.moves[0].column == column
    assert mended.model.block[mended.moves[0].targets[0]] == 2
    assert mended.objectives[-1] >= mended.objectives[0]
    assert specific_column(mended.model, truth, data, 2)[1] > 0.95 * before


def test_a_factor_coded_twice_is_cleared(fitted):
    _, data, model = fitted
    double = made()
    double.load_state_dict(model.state_dict())
    column = int(block_check(model, data).columns[0])
    target = unused(model, 0)
    with torch.no_grad():
        _copy(double, column, target)
    check = block_check(double, data)
    assert (column, target) in check.double_coded
    mended = mend_blocks(double, data, max_epochs=80, rounds=1, **OPTIONS)
    assert [move.column for move in (*mended.moves, *mended.rejected)] == [target]
    assert not mended.rejected
    assert block_check(mended.model, data).passed


def test_factors_match_themselves_whatever_their_order_and_sign(fitted):
    _, data, model = fitted
    found = factors(model, data)
    order = torch.randperm(len(found.columns), generator=torch.Generator().manual_seed(3))
    other = found._replace(
        scores=-found.scores[:, order], columns=found.columns[order], block=found.block[order]
    )
    correlation, partner = match_factors(found, other, data.study)
    torch.testing.assert_close(correlation, torch.ones(len(order)))
    assert torch.equal(order[partner], torch.arange(len(order)))


def test_stability_of_refits(fitted):
    truth, data, model = fitted
    again = refitting(made, max_epochs=40, **OPTIONS)
    found = stability(again, data, model, seeds=(5, 6))
    assert found.correlation.shape == (2, len(found.reference.columns))
    assert found.recovered.min() >= 0
    assert found.recovered.max() <= 1
    assert found.stable(0.9).sum() >= 5  # of six true factors
    agreed = found.consensus_support()
    shares = (agreed & found.reference.support).sum(0) / found.reference.support.sum(0)
    assert shares[found.stable(0.9)].mean() > 0.8
    with pytest.raises(ValueError, match="at least one seed"):
        stability(again, data, model, seeds=())
    assert truth.x.shape == (600, 54)


def test_an_unstable_specific_factor_is_taken_out_and_shared_ones_stay(fitted):
    truth, data, model = fitted
    found = factors(model, data)
    recovered = torch.zeros(len(found.columns))  # nothing came back
    empty = torch.zeros(1, len(found.columns))
    unstable = Stability(found, empty, empty, empty.bool(), recovered, torch.zeros(54, 1))
    screening = screen_specific(model, unstable, data, max_epochs=10, **OPTIONS)
    specific = [k for k in found.columns.tolist() if model.block[k] >= 0]
    assert list(screening.removed) == specific
    left = factors(screening.model, data)
    assert set(left.columns.tolist()) <= {k for k in range(6)}
    law = posterior(screening.model, data.batch())["z"]
    assert (screening.model.sparse.masked[:, specific] == 0).all()
    assert law.mean[:, specific].abs().max() < 0.3
    assert (model.loadings[:, specific].abs() > 0.1).any()  # the given model is as it was
    stable = unstable._replace(recovered=recovered + 1)
    assert screen_specific(model, stable, data, max_epochs=10).model is model
