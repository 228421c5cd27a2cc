"""Uncertain codes against their priors and their own draws, in a real tower."""

import pytest
import torch

pytest.importorskip("open_clip")

from probinterp.jobs import clt_code_checks
from probinterp.jobs.clt_checks import check_on_heldout
from probinterp.jobs.clt_code_checks import check_codes, codes_section, is_uncertain
from probinterp.jobs.clt_evaluation import classification
from probinterp.jobs.clt_fitting import fit_transcoder, make_transcoder
from probinterp.vision import digits, record_activations, resolve, tiny_clip
from probinterp.vision.tiny_clip import CLASS_NAMES, TEMPLATES

N = 24


@pytest.fixture(scope="module")
def task():
    images, labels = (part[:N] for part in digits().heldout)
    tower = resolve(tiny_clip().model)
    data = record_activations(tower, images, labels=labels, store="both", progress=False)
    return classification(tower, images, labels, CLASS_NAMES, TEMPLATES, data)


@pytest.fixture(scope="module")
def clt(task):
    made = make_transcoder(task.data, activation="truncated-normal", n_latents=16, target_l0=3)
    fit_transcoder(made, task.data, epochs=6, batch_size=34, device="cpu", progress=False)
    return made.eval()


def test_only_spike_and_slab_codes_are_uncertain(task, clt):
    assert is_uncertain(clt)
    assert not is_uncertain(make_transcoder(task.data, n_latents=8, target_l0=2))
    assert not is_uncertain(torch.nn.Identity())


def test_rates_and_drift_are_those_of_the_transcoder(task, clt, monkeypatch):
    monkeypatch.setattr(clt_code_checks, "N_DRAWS", 5)
    found = check_codes(clt, task)
    inputs = task.data.batch().inputs
    gates = clt.posterior_codes(inputs).inclusion.sum(2).mean(0)
    torch.testing.assert_close(
        torch.tensor(found.rates["sum of the gates"].tolist()).double(), gates.double()
    )
    active = (clt.hard_codes(inputs) != 0).double().sum(2).mean(0)
    assert found.rates["active"].tolist() == pytest.approx(active.tolist())
    prior = clt.activation.rate.sum(1)
    assert found.rates["prior"].tolist() == pytest.approx(prior.tolist(), rel=1e-5)
    assert found.drift["kl_draws"] > 0
    section = codes_section({"clt": found})
    assert [len(table.frame) for table in section.tables] == [4, 1]


def test_uncertain_codes_are_checked_by_their_own_law_too(task, clt, monkeypatch):
    monkeypatch.setattr("probinterp.jobs.clt_checks.N_DRAWS", 19)
    table = check_on_heldout({"clt": clt}, task.data, task.tower.grid)
    assert list(table["proxy"].unique()) == ["clt, own law", "clt"]
    own, residual = (table[table["proxy"] == name] for name in table["proxy"].unique())
    assert own["heldout"].tolist() != residual["heldout"].tolist()
    monkeypatch.setattr("probinterp.jobs.clt_checks.MOST_CODES", 100)
    table = check_on_heldout({"clt": clt}, task.data, task.tower.grid)
    assert list(table["proxy"].unique()) == ["clt"]
