"""One small simulated data set and one short fit of it, shared by the tests of this folder."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from probinterp import simulate
from probinterp.jobs import fit_file

SHORT = {"n_factors": 3, "n_hidden": 8, "max_epochs": 10, "device": "cpu", "progress": False}


@pytest.fixture(scope="session")
def cells():
    truth = simulate.sparse_counts(100, 24, 3, seed=0)
    obs = pd.DataFrame(
        {
            "group": pd.Categorical(np.where(truth.z[:, 0] > 0, "high", "low")),
            "donor": pd.Categorical([f"d{i % 5}" for i in range(100)]),
        },
        index=[f"cell{i}" for i in range(100)],
    )
    var = pd.DataFrame(index=[f"gene{j}" for j in range(24)])
    truth.x[7] = 0  # a cell without a count, to be left out everywhere
    counts = sp.csr_matrix(truth.x.numpy())
    return anndata.AnnData(counts, obs=obs, var=var, layers={"raw": counts.copy()})


@pytest.fixture(scope="session")
def file(cells, tmp_path_factory):
    path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    cells.write_h5ad(path)
    return path


@pytest.fixture(scope="session")
def fit_options():
    return dict(SHORT)


@pytest.fixture(scope="session")
def fitted_folder(file, tmp_path_factory):
    """Folder of a finished fit; read-only for the tests."""
    folder = tmp_path_factory.mktemp("fit")
    fit_file(file, folder, **SHORT)
    return folder


@pytest.fixture(scope="session")
def several_studies():
    truth = simulate.multistudy(
        3, (50, 40, 30), 1, 1, likelihood="negative_binomial", mean_count=8.0, seed=0
    )
    names = np.array(["HC", "Lung", "GBM"])[truth.study.numpy()]
    obs = pd.DataFrame(
        {"disease": names, "batch": [f"b{i % 2}" for i in range(120)], "one": "all"},
        index=[f"cell{i}" for i in range(120)],
    )
    var = pd.DataFrame(index=[f"gene{j}" for j in range(truth.x.shape[1])])
    return anndata.AnnData(sp.csr_matrix(truth.x.numpy()), obs=obs, var=var)


@pytest.fixture(scope="session")
def study_options():
    sizes = {"n_shared": 2, "n_specific": 1}
    return (
        {name: value for name, value in SHORT.items() if name != "n_factors"}
        | sizes
        | {
            "study_key": "disease",
            "batch_key": "batch",
        }
    )


@pytest.fixture(scope="session")
def studies_folder(several_studies, study_options, tmp_path_factory):
    """Folder of a finished fit to three studies; read-only for the tests."""
    folder = tmp_path_factory.mktemp("studies")
    several_studies.write_h5ad(folder / "cells.h5ad")
    fit_file(folder / "cells.h5ad", folder / "fit", **study_options)
    return folder / "fit"
