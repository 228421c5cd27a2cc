"""Recovery of the planted factors, over several data sets (see benchmarks/README.md)."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from probinterp import simulate

PATH = Path(__file__).parents[1] / "benchmarks" / "sparse_vae_simulation.py"
SPEC = importlib.util.spec_from_file_location("sparse_vae_simulation", PATH)
benchmark = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(benchmark)


@pytest.fixture(scope="module")
def scores():
    """Four data sets with independent factors, best of two restarts each."""
    threads = torch.get_num_threads()
    rows = [
        benchmark.run(name, 0.0, number, 2) for name in ("sparse VAE", "VAE") for number in range(4)
    ]
    torch.set_num_threads(threads)
    return pd.DataFrame(rows).set_index(["method", "set"])


@pytest.mark.slow
def test_sparse_vae_recovers_independent_factors(scores):
    ours = scores.loc["sparse VAE"]
    assert ours["DCI"].median() >= 0.95
    assert ours["MSE"].median() <= 0.7
    assert ours["MSE"].max() <= 1.2
    assert 8 <= ours["support"].median() <= 16
    assert ours["Hamming"].median() <= 7
    assert ours[["sigma_4", "sigma_5", "sigma_6"]].median().between(0.40, 0.60).all()


@pytest.mark.slow
def test_sparse_vae_beats_the_dense_one(scores):
    ours, dense = scores.loc["sparse VAE"], scores.loc["VAE"]
    assert ours["DCI"].median() >= dense["DCI"].median() + 0.05
    assert (ours["DCI"] >= 0.95).sum() > (dense["DCI"] >= 0.95).sum()
    assert ours["MSE"].median() <= 2 * dense["MSE"].median()


@pytest.mark.slow
def test_strong_correlation_needs_a_correlated_prior():
    """A limit, and its remedy: with rho = .8 and an independent prior the factors mix."""
    found = {
        name: np.median([benchmark.run(name, 0.8, number, 1)["DCI"] for number in range(3)])
        for name in ("sparse VAE", "+ correlated prior")
    }
    assert found["sparse VAE"] < 0.6
    assert found["+ correlated prior"] > found["sparse VAE"] + 0.2


def test_disentanglement_of_known_codes():
    truth = simulate.sparse_vae_toy(n=500, seed=0).z.numpy()
    noise = np.random.default_rng(0).standard_normal((500, 3))
    exact = np.concatenate([truth, noise], axis=1)
    angle = np.pi / 4
    turned = truth @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    assert benchmark.disentanglement(exact, truth) > 0.98
    assert benchmark.disentanglement(turned, truth) < 0.01


def test_support_distance_of_known_supports():
    truth = simulate.sparse_vae_toy(n=200, seed=1)
    codes = np.concatenate([truth.z.numpy()[:, ::-1], np.zeros((200, 1))], axis=1)
    support = np.concatenate([truth.support.numpy()[:, ::-1], np.zeros((7, 1), bool)], axis=1)
    assert benchmark.support_distance(support, codes, truth) == 0
    support[0, 2] = True
    assert benchmark.support_distance(support, codes, truth) == 1
    same = np.repeat(truth.z.numpy()[:, :1], 2, axis=1)
    one = truth._replace(z=truth.z[:, :1].expand(-1, 2))
    assert np.isnan(benchmark.support_distance(support[:, :2], same, one))
