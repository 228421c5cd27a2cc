"""Predictive checks of proxies in a real tower: what they flag and what they do not."""

import pytest
import torch

pytest.importorskip("open_clip")

from probinterp.jobs import clt_checks
from probinterp.jobs.clt_checks import (
    check_on_heldout,
    check_proxies,
    check_sentence,
    checks_section,
    flagged_discrepancies,
)
from probinterp.models import RidgeProxy
from probinterp.vision import ActivationData, digits, record_activations, resolve, tiny_clip


class Predicted:
    """A tower whose MLPs are a ridge regression plus noise of known covariance."""

    def __init__(self, data, proxy, seed):
        self.data, self.proxy, self.seed = data, proxy, seed

    def __getattr__(self, name):
        return getattr(self.data, name)

    def images(self, index):
        return Predicted(self.data.images(index), self.proxy, self.seed)

    def batch(self, index=None):
        batch = self.data.batch(index)
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(batch.x.shape, generator=generator)
        return batch._replace(x=self.proxy(batch.inputs) + 0.1 * noise)


@pytest.fixture(scope="module")
def tower():
    return resolve(tiny_clip().model)


@pytest.fixture(scope="module")
def recorded(tower):
    images, labels = digits().heldout
    return record_activations(
        tower, images[:120], labels=labels[:120], store="both", progress=False
    )


@pytest.fixture(scope="module")
def ridge(recorded):
    return RidgeProxy.fitted([recorded.images(torch.arange(30)).batch()])


def test_a_linear_map_of_real_mlps_is_flagged_for_errors_that_add_up(recorded, ridge, tower):
    rest = recorded.images(torch.arange(30, 120))
    table = check_on_heldout({"ridge": ridge}, rest, tower.grid, seed=0)
    flagged = flagged_discrepancies(table)["ridge"]
    assert {"layer_correlation", "moran_i"} <= set(flagged)
    assert (table["p_family"] <= 0.05 / 12)[table["flagged"]].all()
    section = checks_section(table)
    (counts,) = (t.frame for t in section.tables)
    assert counts.set_index("discrepancy")["ridge"].sum() == table["flagged"].sum()
    assert len(section.figures) == 1
    assert "layer_correlation" in check_sentence("ridge", flagged)


def test_data_simulated_from_the_proxy_are_not_flagged(recorded, ridge, tower):
    known = Predicted(recorded.images(torch.arange(30, 90)), ridge, 1)
    new = Predicted(recorded.images(torch.arange(90, 120)), ridge, 2)
    table = check_proxies({"ridge": ridge}, known, new, tower.grid)
    assert flagged_discrepancies(table) == {"ridge": []}
    assert check_sentence("ridge", []) == "ridge: held-out predictive checks reject nothing."


def test_class_tokens_alone_are_checked_without_neighbours(recorded, ridge, tower, monkeypatch):
    monkeypatch.setattr(clt_checks, "N_DRAWS", 39)
    alone = recorded.of_type("cls")
    assert isinstance(alone, ActivationData)
    table = check_on_heldout({"ridge": ridge}, alone, tower.grid)
    assert "moran_i" not in set(table["discrepancy"])
    assert set(table["cell"]) == {"class", *(f"layer {layer}, class" for layer in range(4))}


def test_few_images_are_not_checked(recorded, ridge, tower):
    assert check_on_heldout({"ridge": ridge}, recorded.images(torch.arange(19)), tower.grid) is None
    assert "fewer than 20" in checks_section(None).text
