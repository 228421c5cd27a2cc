"""Results of checks made by hand."""

import pytest
import torch

from probinterp.criticism import PopPCResult


@pytest.fixture
def result():
    """Make a result from held-out and replicated discrepancies."""

    def make(heldout, replicated, uniform=None, **changes):
        replicated = torch.as_tensor(replicated, dtype=torch.float64)
        heldout = torch.as_tensor(heldout, dtype=torch.float64)
        shape = replicated.shape[1:]
        uniform = torch.full(shape, 0.25) if uniform is None else torch.as_tensor(uniform)
        fields = {
            "check": "pop-pc",
            "discrepancy": "d",
            "kind": "plugin",
            "n_new": 7,
            "n_features": 2,
            "n_obs": None,
            "seed": 0,
            "reference": "argument",
            "local": None,
            "regime": None,
            "calibrated": True,
            "notes": (),
        }
        numbers = {"heldout": heldout, "replicated": replicated, "uniform": uniform.double()}
        return PopPCResult(**fields | numbers | changes)

    return make
