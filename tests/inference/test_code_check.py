from copy import deepcopy

import pytest
import torch

from probinterp import fit, posterior, simulate
from probinterp.inference import ArrayData, code_check, full_objective, mend_codes
from probinterp.inference.svi import late_cosine
from probinterp.likelihoods import NegativeBinomialLikelihood
from probinterp.models import MultiStudySparseVAE, SparseVAE

OPTIONS = {
    "batch_size": 100,
    "progress": False,
    "schedule": late_cosine,
    "optimizer": lambda p: torch.optim.Adam(p, lr=1e-2),
}


@pytest.fixture(scope="module")
def fitted():
    """A set whose first shared factor, seen mostly through sines, is folded by a plain fit."""
    truth = simulate.multistudy(seed=1)
    data = ArrayData(truth.x, study=truth.study)
    torch.manual_seed(100)
    model = MultiStudySparseVAE(54, 6, 2, 3, n_hidden=50, spike=300.0, slab=10.0, kl_warmup=0.2)
    fit(model, data, max_epochs=80, seed=0, **OPTIONS)
    return truth, data, model


def best_correlation(code, truth, rows=slice(None)):
    pair = torch.cat([code[rows].unsqueeze(1), truth.z[rows]], 1)
    return float(pair.mT.corrcoef()[0, 1:].nan_to_num().abs().max())


def test_folded_codes_are_found_and_unfolded_and_the_others_are_not(fitted):
    truth, data, model = fitted
    check = code_check(model, data)
    z = posterior(model, data.batch())["z"].mean
    found = []
    for k, column in enumerate(check.columns.tolist()):
        rows = model.gate_of(data.batch())[:, column]
        code, curve = z[:, column], check.score[:, k]
        found.append((best_correlation(code, truth, rows), best_correlation(curve, truth, rows)))
    before, after = torch.tensor(found).T
    assert before[check.folded].max() < 0.96 < before[~check.folded].min()
    assert before.min() < 0.85
    assert after.min() > 0.98
    assert check.repeats == ()
    assert not check.passed


@pytest.mark.slow
def test_mending_unfolds_it_and_beats_longer_training(fitted):
    truth, data, model = fitted
    before = deepcopy(model.state_dict())
    check = code_check(model, data)
    worst = int(check.columns[(check.curve_residual / check.residual).argmin()])
    mending = mend_codes(model, data, max_epochs=80, rounds=1, **OPTIONS)
    assert (worst, None, "folded code") in mending.changes
    assert mending.rejected == ()
    assert mending.objectives[1] > mending.objectives[0] + 2
    assert mending.objectives[1] == pytest.approx(full_objective(mending.model, data), abs=1e-3)
    z = posterior(mending.model, data.batch())["z"].mean
    assert best_correlation(z[:, worst], truth) > 0.98
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_factor_in_two_columns_is_found(fitted):
    truth, data, model = fitted
    divided = deepcopy(model)
    check = code_check(divided, data)
    good = check.columns[~check.folded & (check.columns < 6)]
    kept = int(good[0])
    spare = next(k for k in range(6) if k not in check.columns.tolist())
    views = (divided.sparse.weight.data, divided.decoder.first_direction.data)
    with torch.no_grad():
        for table in views:
            table[:, spare] = table[:, kept]
        half = divided.sparse.weight[:, kept].abs().argsort()[::2]
        divided.sparse.weight[half, kept] = 0  # the spare column takes these over
        others = torch.ones(54, dtype=torch.bool)
        others[half] = False
        divided.sparse.weight[others, spare] = 0
        divided.sparse.inclusion_rate[spare] = divided.sparse.inclusion_rate[kept]
        for head in (divided.encoder.loc, divided.encoder.log_variance):
            head.weight[spare], head.bias[spare] = head.weight[kept], head.bias[kept]
    (repeat,) = code_check(divided, data).repeats
    assert {repeat.kept, repeat.dropped} == {kept, spare}
    assert repeat.dependence > 0.9
    assert best_correlation(repeat.score, truth) > 0.98


def test_models_of_one_study_and_of_counts_are_checked_too():
    truth = simulate.multistudy(likelihood="negative_binomial", seed=0)
    data = ArrayData(truth.x, size_factor=truth.size_factor)
    torch.manual_seed(0)
    likelihood = NegativeBinomialLikelihood(54, standardize=True)
    model = SparseVAE(54, 6, n_hidden=32, spike=300.0, slab=10.0, likelihood=likelihood)
    fit(model, data, max_epochs=20, seed=0, **OPTIONS)
    check = code_check(model, data)
    assert len(check.columns) == len(check.residual) == check.score.shape[1]
    assert (check.residual > 0).all()
    assert (check.curve_residual <= check.residual * (1 + 1e-6)).all()


def test_a_few_observations_get_no_curve(fitted):
    _, data, model = fitted
    some = data.subset(torch.arange(0, 600, 12))  # 50 in all, 16 or 17 of each study
    check = code_check(model, some)
    torch.testing.assert_close(check.curve_residual, check.residual)
    assert check.passed
