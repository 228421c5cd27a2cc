"""Population predictive checks of multi-study models, study by study."""

import pytest
import torch

from probinterp import discrepancies, fit, pop_pc, predictive_draws, simulate
from probinterp.inference import ArrayData
from probinterp.inference.svi import late_cosine
from probinterp.models import MultiStudySparseVAE, SparseVAE

N_SETS, N_DRAWS = 200, 59


@pytest.fixture(scope="module")
def studies():
    """One study with three factors of its own, two without any."""
    truth = simulate.multistudy(n_specific=(3, 0, 0), seed=2)
    return ArrayData(truth.x, study=truth.study), truth.more(60, seed=5)


def fitted(model, data):
    adam = lambda p: torch.optim.Adam(p, lr=1e-2)  # noqa: E731
    options = {"schedule": late_cosine, "optimizer": adam, "progress": False}
    fit(model, data, max_epochs=100, batch_size=100, seed=0, **options)
    return model


def by_study():
    torch.manual_seed(0)
    return MultiStudySparseVAE(54, 6, 3, 3, n_hidden=32, spike=300.0, slab=10.0, kl_warmup=0.2)


def gap_of(batch):
    return discrepancies.group_gap(discrepancies.variance, batch.study)


@pytest.fixture(scope="module")
def right_model(studies):
    return fitted(by_study(), studies[0])


def test_gap_between_studies_is_calibrated_on_data_of_the_model(studies, right_model):
    model, batch = right_model, ArrayData(studies[1].x, study=studies[1].study).batch()
    truth = predictive_draws(model, batch, N_SETS, seed=100)
    draws = predictive_draws(model, batch, N_DRAWS, seed=1)
    gap = gap_of(batch)
    replicated = torch.stack([gap(draw.replicate(), draw) for draw in draws])
    data = torch.stack([gap(draw.replicate(), draw) for draw in truth])
    upper = (replicated.unsqueeze(1) >= data).sum(0) + 1
    p = (2 * torch.minimum(upper, N_DRAWS + 2 - upper) / (N_DRAWS + 1)).clamp(max=1)
    assert float((p <= 0.05).double().mean()) < 0.05 + 4 * 0.0154  # standard error of the rate
    assert 0.35 < float(p.mean()) < 0.65


@pytest.mark.filterwarnings("ignore::probinterp.criticism.CriticismWarning")
def test_gap_between_studies_rejects_a_pooled_model_and_not_the_right_one(studies, right_model):
    data, truth = studies
    batch = ArrayData(truth.x, study=truth.study).batch()
    torch.manual_seed(0)
    pooled = fitted(SparseVAE(54, 12, n_hidden=32, spike=300.0, slab=10.0), data)
    found = {}
    for name, model in {"pooled": pooled, "by study": right_model}.items():
        draws = predictive_draws(model, batch, 199, seed=1)
        found[name] = pop_pc(draws, batch.x, gap_of(batch), n_obs=len(data), seed=0)
    assert found["pooled"].p_two_sided <= 0.02
    assert abs(found["by study"].z) < 0.5 * abs(found["pooled"].z)
