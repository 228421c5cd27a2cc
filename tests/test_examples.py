import os
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name, folder, *arguments):
    environment = os.environ | {"MPLBACKEND": "agg", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_example_is_short_and_run_here():
    sizes = {path.name: len(path.read_text().splitlines()) for path in EXAMPLES.glob("*.py")}
    assert set(sizes) == {
        "check_any_model.py",
        "check_nuts.py",
        "pbmc_sparse_vae.py",
        "platelets.py",
        "train_tiny_clip.py",
        "topics.py",
    }
    assert max(sizes.values()) <= 100


def test_check_any_model(tmp_path):
    done = run("check_any_model.py", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "chi_square shows misfit" in done.stdout


def test_topics(tmp_path):
    done = run("topics.py", tmp_path)
    assert done.returncode == 0, done.stderr
    passed, failed = done.stdout.split("\n4 topics")
    assert "shows no misfit" in passed
    assert "shows misfit" in failed
    assert "sd above the mean" in failed


@pytest.mark.engine
def test_pbmc_sparse_vae(tmp_path):
    done = run("pbmc_sparse_vae.py", tmp_path, "--epochs", "2", "--draws", "45")
    assert done.returncode == 0, done.stderr
    adata = anndata.read_h5ad(tmp_path / "pbmc" / "adata.h5ad")
    assert adata.n_obs == 700
    scores = adata.obsm["X_sparse_vae"]
    assert np.isfinite(scores).all()
    assert done.stdout.count("(AUC") == scores.shape[1]
    assert "library_size shows" in done.stdout
    pictures = {path.name for path in (tmp_path / "pbmc").glob("*.png")}
    assert pictures == {"training.png", "effects.png", "activity.png", "library_size.png"}


@pytest.mark.engine
def test_platelets(tmp_path):
    done = run("platelets.py", tmp_path, "--epochs", "5", "--shared", "3", "--refits", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("SYNTHETIC DATA")
    assert "nats per sample" in done.stdout
    assert 1 <= done.stdout.count("stable: gene") <= 6  # codes may be gathered
    pictures = {path.name for path in (tmp_path / "platelets").glob("*.png")}
    assert pictures == {"activity.png", "stability.png"}
