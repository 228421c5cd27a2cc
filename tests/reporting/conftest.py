"""Results to draw, and figures that are closed after every test."""

import matplotlib
import pytest
import torch

from probinterp.criticism import PopPCResult
from probinterp.inference.history import EpochRecord, FitHistory


@pytest.fixture(autouse=True)
def _closed_figures():
    matplotlib.use("Agg")
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


@pytest.fixture
def make_history():
    def make(losses, heldout=None, best_epoch=1):
        heldout = heldout or {}
        records = tuple(
            EpochRecord(epoch, loss, heldout.get(epoch), 1e-3, 0.1)
            for epoch, loss in enumerate(losses, start=1)
        )
        return FitHistory(records, "max_epochs", best_epoch, 0)

    return make


@pytest.fixture
def make_result():
    def make(replicated, heldout, **changes):
        replicated = torch.as_tensor(replicated, dtype=torch.float64)
        heldout = torch.as_tensor(heldout, dtype=torch.float64)
        fields = {
            "check": "pop-pc",
            "discrepancy": "mean_negative_log_likelihood",
            "kind": "plugin",
            "heldout": heldout,
            "replicated": replicated,
            "uniform": torch.full(replicated.shape[1:], 0.5, dtype=torch.float64),
            "n_new": 20,
            "n_features": 3,
            "n_obs": 200,
            "seed": 7,
            "reference": "posterior mean",
            "local": "prior",
            "regime": None,
            "calibrated": True,
            "notes": (),
        }
        return PopPCResult(**(fields | changes))

    return make
