import json
import math
import zipfile

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import stats
from torch.distributions import Independent, Normal

from probinterp.criticism import pop_pc, ppc
from probinterp.criticism.discrepancies import maximum, mean, mean_negative_log_likelihood
from probinterp.reporting import from_arviz, loo_pit, to_arviz
from probinterp.reporting.arviz_version import tree_of_arrays

RNG = np.random.default_rng(0)
REPLICATED = RNG.normal(size=(2, 30, 5, 3))  # chains, draws, units, features
OBSERVED, HELDOUT = RNG.normal(size=(2, 5, 3))


@pytest.fixture
def tree():
    groups = {
        "posterior": {"mu": RNG.normal(size=(2, 30))},
        "posterior_predictive": {"y": REPLICATED},
        "observed_data": {"y": OBSERVED},
    }
    dims = {"y": ["cell", "gene"]}
    coords = {"cell": list("abcde"), "gene": [1, 2, 3]}
    return tree_of_arrays(groups, dims=dims, coords=coords)


def test_replicates_chain_after_chain(tree):
    draws, x = from_arviz(tree, HELDOUT)
    assert len(draws) == 60
    assert draws.replicate_chunk(28, 33).numpy() == pytest.approx(
        REPLICATED.reshape(60, 5, 3)[28:33], abs=0
    )
    assert x.numpy() == pytest.approx(HELDOUT, abs=0)
    assert draws.n_obs == 5
    assert 10 < draws.n_effective <= 60
    result = pop_pc(draws, x, mean)
    expected = (REPLICATED.reshape(60, -1).mean(1) >= HELDOUT.mean()).mean()
    assert result.p_value.item() == pytest.approx(expected, abs=1e-12)


def test_units_are_the_dimension_that_is_named(tree):
    draws, x = from_arviz(tree, HELDOUT, unit_dim="gene")
    assert x.numpy() == pytest.approx(HELDOUT.T, abs=0)
    assert next(iter(draws)).replicate().numpy() == pytest.approx(REPLICATED[0, 0].T, abs=0)
    assert from_arviz(tree, HELDOUT.T.copy(), unit_dim="gene").x.shape == (3, 5)
    with pytest.raises(KeyError, match=r"'y' has no dimension 'donor'; it has \['cell', 'gene'\]"):
        from_arviz(tree, HELDOUT, unit_dim="donor")


def test_labelled_data_are_matched_by_name(tree):
    genes, cells = [1, 2, 3], list("abcde")
    labelled = xr.DataArray(HELDOUT.T, dims=["gene", "cell"], coords={"gene": genes, "cell": cells})
    assert from_arviz(tree, labelled).x.numpy() == pytest.approx(HELDOUT, abs=0)
    with pytest.raises(ValueError, match="other labels along 'cell' than the replicates"):
        from_arviz(tree, labelled.assign_coords(cell=list("vwxyz")))
    with pytest.raises(ValueError, match=r"the data have dimensions \['gene', 'unit'\]"):
        from_arviz(tree, labelled.rename(cell="unit"))


def test_data_sets_and_stacked_samples():
    variable = xr.DataArray(REPLICATED, dims=["chain", "draw", "cell", "gene"], name="y")
    flat = REPLICATED.reshape(60, 5, 3)
    shapes = {
        "data set": variable.to_dataset(),
        "sample": variable.stack(sample=("chain", "draw")).to_dataset(),
        "no chain": xr.Dataset({"y": (("draw", "cell", "gene"), flat)}),
        "order": variable.transpose("gene", "draw", "cell", "chain").to_dataset(),
    }
    for name, data in shapes.items():
        unit_dim = "cell" if name == "order" else None
        draws, _ = from_arviz(data, HELDOUT, unit_dim=unit_dim)
        assert draws.replicate_chunk(0, 60).numpy() == pytest.approx(flat, abs=0), name
        assert draws.n_effective is None
    with pytest.raises(KeyError, match="needs dimensions 'chain' and 'draw', or 'sample'"):
        from_arviz(xr.Dataset({"y": (("s", "cell"), flat[:, :, 0])}), HELDOUT[:, 0])


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_files_are_read(tree, tmp_path, suffix):
    pytest.importorskip("h5py" if suffix == ".nc" else "zarr")
    path = tmp_path / f"fit{suffix}"
    groups = {name: tree[name] for name in ("posterior", "posterior_predictive", "observed_data")}
    if not isinstance(groups["posterior"], xr.Dataset):
        groups = {name: node.to_dataset() for name, node in groups.items()}
    written = xr.DataTree.from_dict(groups)
    if suffix == ".nc":
        written.to_netcdf(path, engine="h5netcdf")
    else:
        written.to_zarr(path, zarr_format=2)
    expected = pop_pc(*from_arviz(tree, HELDOUT), maximum)
    for given in (path, str(path)):
        result = pop_pc(*from_arviz(given, HELDOUT), maximum)
        assert result.replicated.tolist() == expected.replicated.tolist()
        assert result.n_obs == 5


def test_out_of_sample_predictions_are_preferred(tree):
    groups = {
        "posterior_predictive": {"y": REPLICATED},
        "predictions": {"y": REPLICATED[..., :2, :]},
    }
    draws, x = from_arviz(tree_of_arrays(groups), HELDOUT[:2])
    assert draws.replicate_chunk(0, 1).shape[1:] == x.shape == (2, 3)


def test_data_of_the_fit_are_not_held_out(tree):
    rounded = OBSERVED * (1 + 1e-9)  # as a text file may have it
    for observed in (OBSERVED, torch.as_tensor(OBSERVED), rounded):
        with pytest.raises(ValueError, match="group observed_data, which the fit has seen"):
            from_arviz(tree, observed)
    with pytest.raises(ValueError, match="pass the held-out data.*fitted=True and call ppc"):
        from_arviz(tree)
    result = ppc(*from_arviz(tree, fitted=True), mean)
    assert result.heldout.item() == pytest.approx(OBSERVED.mean())
    assert result.check == "ppc"
    with pytest.raises(ValueError, match="it takes no heldout data"):
        from_arviz(tree, HELDOUT, fitted=True)


def test_a_tree_may_say_that_its_data_are_held_out(tree):
    tree["observed_data"].attrs["heldout"] = 1
    draws, x = from_arviz(tree)
    assert x.numpy() == pytest.approx(OBSERVED, abs=0)
    assert draws.n_obs is None
    assert from_arviz(tree, OBSERVED).x.shape == (5, 3)


def test_statistics_of_a_check_can_be_checked_again(tree):
    """A tree of to_arviz is labelled; its statistics are one row of one number."""
    first = pop_pc(*from_arviz(tree, HELDOUT), mean)
    again = pop_pc(*from_arviz(to_arviz(first)), maximum)
    assert again.p_value.item() == first.p_value.item()


def test_counts_tie_with_the_data():
    counts = RNG.poisson(1.0, size=(1, 40, 6))
    tree = tree_of_arrays({"posterior_predictive": {"y": counts}})
    draws, x = from_arviz(tree, counts[0, 0].astype(np.int32))
    assert (x.dtype, x.shape) == (torch.float64, (6, 1))
    result = pop_pc(draws, x, mean)
    same = (counts[0].sum(1) == counts[0, 0].sum()).sum()
    assert (result.replicated == result.heldout).sum().item() == same >= 1


def test_a_reference_scores(tree):
    def law(x):
        return Independent(Normal(torch.zeros_like(x), 1.0), 1)

    draws, x = from_arviz(tree, HELDOUT, reference=law)
    result = pop_pc(draws, x, mean_negative_log_likelihood)
    assert result.heldout.item() == pytest.approx(-stats.norm.logpdf(HELDOUT).sum(1).mean())
    with pytest.raises(ValueError, match="these draws cannot score data"):
        pop_pc(*from_arviz(tree, HELDOUT), mean_negative_log_likelihood)


@pytest.mark.parametrize(
    ("groups", "options", "error", "text"),
    [
        ({"posterior": {"y": REPLICATED}}, {}, KeyError, "no group 'posterior_predictive'"),
        (
            {"posterior_predictive": {"y": REPLICATED, "z": REPLICATED}},
            {},
            ValueError,
            r"holds \['y', 'z'\]; pass var_name",
        ),
        (
            {"posterior_predictive": {"y": REPLICATED}},
            {"var_name": "z"},
            KeyError,
            "no variable 'z'",
        ),
        ({"posterior_predictive": {"y": REPLICATED[..., 0, 0]}}, {}, ValueError, "a single number"),
        (
            {"posterior_predictive": {"y": REPLICATED[..., :2]}},
            {},
            ValueError,
            r"the shape of a replicate, \(5, 2\), or \(units, features\) \(5, 2\), got \(5, 3\)",
        ),
    ],
)
def test_bad_trees_are_refused(groups, options, error, text):
    with pytest.raises(error, match=text):
        from_arviz(tree_of_arrays(groups), HELDOUT, **options)


def test_bad_sources_are_refused(tmp_path):
    with pytest.raises(TypeError, match="expected an ArviZ InferenceData.*got list"):
        from_arviz([1.0], HELDOUT)
    with pytest.raises(ValueError, match=r"expected a .nc or .zarr file, got 'fit.csv'"):
        from_arviz("fit.csv", HELDOUT)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        from_arviz(tmp_path / "fit.nc", HELDOUT)


@pytest.fixture
def normal_fit():
    """Known scale 1, flat prior on the mean, 25 observations."""
    random = np.random.default_rng(1)
    y = random.normal(size=25)
    mu = y.mean() + random.normal(size=(4, 1000)) / 5
    groups = {
        "posterior": {"mu": mu},
        "posterior_predictive": {"y": mu[..., None] + random.normal(size=(4, 1000, 25))},
        "log_likelihood": {"y": stats.norm(mu[..., None]).logpdf(y)},
        "observed_data": {"y": y},
    }
    return groups, y


def test_loo_pit_has_its_closed_form(normal_fit):
    """x_i given the others is N(mean of the others, 1 + 1/24)."""
    groups, y = normal_fit
    found = loo_pit(tree_of_arrays(groups))
    others = (y.sum() - y) / 24
    expected = stats.norm(others, math.sqrt(1 + 1 / 24)).cdf(y)
    assert found.values == pytest.approx(expected, abs=0.05)
    assert found.pareto_k.shape == (25,)
    assert (found.pareto_k < 0.7).all()
    assert len(found.notes) == 1
    assert "LOO-PIT values are dependent" in found.notes[0]


def test_loo_pit_says_where_it_cannot_be_trusted(normal_fit):
    groups, y = normal_fit
    density = groups["log_likelihood"]["y"].copy()
    density[..., 3] = -((groups["posterior"]["mu"] - 9) ** 2) * 20
    groups["log_likelihood"] = {"y": density}
    assert "1 of 25 values have a Pareto k above 0.7" in loo_pit(tree_of_arrays(groups)).notes[1]


def test_loo_pit_needs_its_groups(normal_fit, tree):
    with pytest.raises(KeyError, match=r"missing: \['log_likelihood'\]"):
        loo_pit(tree)
    groups, _ = normal_fit
    with pytest.raises(KeyError, match="no variable 'z' in"):
        loo_pit(tree_of_arrays(groups), var_name="z")
    groups["observed_data"]["z"] = np.zeros(2)
    with pytest.raises(ValueError, match=r"observes \['y', 'z'\]; pass var_name"):
        loo_pit(tree_of_arrays(groups))


def stored(path):
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(archive.namelist()[0]))


@pytest.fixture
def eight_schools(data_dir):
    folder = data_dir / "posteriordb_subset"
    if not folder.is_dir():
        pytest.skip(f"{folder} not found")
    data = stored(folder / "eight_schools.data.json.zip")
    chains = stored(folder / "eight_schools-eight_schools_noncentered.draws.json.zip")
    draws = {name: np.array([chain[name] for chain in chains]) for name in ("mu", "tau")}
    return np.array(data["y"], float), np.array(data["sigma"], float), draws


def test_new_schools_like_the_eight(eight_schools):
    """Reference draws of the fit; eight schools of the population fit, of twice its spread not."""
    y, sigma, draws = eight_schools
    random = np.random.default_rng(0)
    mu, tau = (draws[name][:, :300, None] for name in ("mu", "tau"))
    theta = mu + tau * random.normal(size=(10, 300, 8))
    groups = {
        "posterior": {"mu": mu[..., 0], "tau": tau[..., 0]},
        "posterior_predictive": {"y": theta + sigma * random.normal(size=theta.shape)},
        "observed_data": {"y": y},
    }
    tree = tree_of_arrays(groups)
    like = from_arviz(tree, 8.0 + sigma * random.normal(size=8), local="prior")
    assert like.draws.n_effective > 2500
    assert pop_pc(*like, maximum).p_two_sided.item() > 0.05
    unlike = from_arviz(tree, 8.0 + 6 * sigma * random.normal(size=8), local="prior")
    assert pop_pc(*unlike, maximum).p_two_sided.item() < 0.01
    assert ppc(*from_arviz(tree, fitted=True), maximum).p_value.item() > 0.2


def test_stored_draws_of_a_regression(data_dir):
    """Test scores of children given the mother's IQ: in-sample residual spread as the model's."""
    folder = data_dir / "posteriordb_subset"
    if not folder.is_dir():
        pytest.skip(f"{folder} not found")
    data = stored(folder / "kidiq.data.json.zip")
    chains = stored(folder / "kidiq-kidscore_momiq.draws.json.zip")
    beta = np.array([[c["beta[1]"], c["beta[2]"]] for c in chains])[..., :50]
    sigma = np.array([c["sigma"] for c in chains])[:, :50, None]
    y, iq = np.array(data["kid_score"], float), np.array(data["mom_iq"], float)
    fitted = beta[:, 0, :, None] + beta[:, 1, :, None] * iq
    noise = np.random.default_rng(0).normal(size=fitted.shape)
    groups = {"posterior_predictive": {"y": fitted + sigma * noise}, "observed_data": {"y": y}}
    result = ppc(*from_arviz(tree_of_arrays(groups), fitted=True), mean)
    assert result.n_draws == 500
    assert abs(result.z.item()) < 0.2
    assert not result.calibrated
