"""Options and fixtures that every test may use."""

import os
from pathlib import Path

import pytest
import torch


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="device that the tests run on: cpu or cuda")


def pytest_collection_modifyitems(config, items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def device(pytestconfig):
    name = pytestconfig.getoption("--device")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.fail("--device cuda was asked for, but torch sees no CUDA device")
    return torch.device(name)


@pytest.fixture(scope="session")
def data_dir():
    """Folder of optional real data; tests that need it are skipped where it is absent."""
    default = Path(__file__).parents[1] / ".." / "shared" / "data"
    folder = Path(os.environ.get("PROBINTERP_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"{folder} not found; set PROBINTERP_DATA")
    return folder


@pytest.fixture(autouse=True)
def _one_seed():
    torch.manual_seed(0)
