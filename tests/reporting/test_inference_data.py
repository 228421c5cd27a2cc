import importlib.util
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest

from probinterp.reporting import to_arviz

RNG = np.random.default_rng(0)
REPLICATED, HELDOUT = RNG.normal(size=(50, 4)), RNG.normal(size=(1, 4))


@pytest.fixture
def scalar(make_result):
    return make_result(REPLICATED[:, 0], HELDOUT[:, 0], discrepancy="chi_square")


@pytest.fixture
def per_feature(make_result):
    return make_result(REPLICATED, HELDOUT, discrepancy="zero_fraction")


def test_the_tree_holds_the_statistics_of_the_results(scalar, per_feature):
    tree = to_arviz([scalar, per_feature], feature_names=["a", "b", "c", "d"])
    replicated, observed = tree["posterior_predictive"], tree["observed_data"]
    assert replicated["chi_square"].shape == (1, 50, 1)
    assert replicated["chi_square"].values.ravel().tolist() == REPLICATED[:, 0].tolist()
    assert observed["chi_square"].values.tolist() == HELDOUT[0, :1].tolist()
    assert replicated["zero_fraction"].dims == ("chain", "draw", "feature")
    assert replicated["zero_fraction"].sel(feature="c").values[0].tolist() == (
        REPLICATED[:, 2].tolist()
    )
    assert observed["zero_fraction"].sel(feature="d").item() == HELDOUT[0, 3]


def test_attributes_name_the_check(scalar):
    tree = to_arviz({"T": scalar})
    for part in (tree, tree["posterior_predictive"], tree["observed_data"]):
        wanted = {"check": "pop-pc", "heldout": 1, "n_new": 20, "seed": 7}
        assert {name: part.attrs[name] for name in wanted} == wanted
        assert part.attrs["creation_library"] == "probinterp"
        assert "creation_library_version" not in part.attrs
    marks = tree["posterior_predictive"]["T"].attrs
    assert marks == {"kind": "plugin", "calibrated": 1}


def test_a_check_of_the_fitted_data_is_not_heldout(make_result):
    tree = to_arviz(make_result([1.0, 2.0], [1.5], check="ppc"))
    assert tree.attrs["heldout"] == 0
    assert tree.attrs["check"] == "ppc"


def test_a_realised_check_keeps_its_p_value(make_result):
    result = make_result(REPLICATED[:, 0], REPLICATED[:, 1], kind="realised")
    tree = to_arviz({"T": result})
    difference = tree["posterior_predictive"]["T"].values
    observed = tree["observed_data"]["T"].values
    assert (difference >= observed).mean() == result.p_value.item()
    assert difference.ravel() == pytest.approx(REPLICATED[:, 0] - REPLICATED[:, 1])


@pytest.mark.skipif(
    not any(importlib.util.find_spec(name) for name in ("h5py", "netCDF4")),
    reason="no netCDF library; ArviZ 1.x does not bring one",
)
def test_the_tree_survives_a_file(scalar, tmp_path):
    import arviz

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        to_arviz(scalar).to_netcdf(str(tmp_path / "check.nc"))
        again = arviz.from_netcdf(str(tmp_path / "check.nc"))
    assert again["posterior_predictive"]["chi_square"].values.ravel().tolist() == (
        REPLICATED[:, 0].tolist()
    )
    assert again.attrs["check"] == "pop-pc"


@pytest.mark.parametrize("kind", ["t_stat", "u_value", "p_value"])
def test_arviz_draws_the_tree(per_feature, kind):
    arviz = pytest.importorskip("arviz", exc_type=ImportError)
    if int(arviz.__version__.split(".")[0]) >= 1:
        pytest.skip("plot_bpv belongs to ArviZ before version 1")
    options = {"t_stat": "mean"} if kind == "t_stat" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ's own, about its dependencies
        axes = arviz.plot_bpv(to_arviz(per_feature), kind=kind, **options)
        axes = np.ravel(axes)
        axes[0].figure.canvas.draw()
        figures = arviz.plot_ppc(to_arviz(per_feature), num_pp_samples=10)
    assert len(axes[0].lines) > 0
    assert np.ravel(figures)[0].has_data()
    plt.close("all")


@pytest.mark.parametrize("plot", ["plot_ppc_tstat", "plot_ppc_dist", "plot_ppc_pit"])
def test_arviz_1_draws_the_tree(per_feature, plot):
    arviz = pytest.importorskip("arviz", exc_type=ImportError)
    if int(arviz.__version__.split(".")[0]) < 1:
        pytest.skip(f"{plot} belongs to ArviZ from version 1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        getattr(arviz, plot)(to_arviz(per_feature), backend="matplotlib")
    axes = plt.gcf().axes
    assert len(axes[0].lines) + len(axes[0].collections) > 0
    plt.close("all")


@pytest.mark.parametrize(
    ("results", "error", "text"),
    [
        (lambda r, f: [], ValueError, "to_arviz needs at least one result, got none"),
        (lambda r, f: [r, r], ValueError, "two results are named 'chi_square'"),
        (lambda r, f: {"T": 3.0}, TypeError, "results must be results of checks, got float"),
    ],
)
def test_bad_results_are_refused(scalar, per_feature, results, error, text):
    with pytest.raises(error, match=text):
        to_arviz(results(scalar, per_feature))


@pytest.mark.parametrize("field", ["n_new", "seed", "check"])
def test_results_in_one_tree_share_their_data(make_result, scalar, field):
    other = make_result([1.0] * 50, [1.0], **{field: "ppc" if field == "check" else 9})
    with pytest.raises(ValueError, match=f"results in one tree must share {field}, got"):
        to_arviz([scalar, other])


def test_results_in_one_tree_share_draws_and_features(make_result, scalar, per_feature):
    with pytest.raises(ValueError, match="must share n_draws"):
        to_arviz([scalar, make_result([1.0, 2.0], [1.0])])
    with pytest.raises(ValueError, match="different numbers of features"):
        to_arviz([per_feature, make_result(REPLICATED[:, :2], HELDOUT[:, :2])])


def test_feature_names_must_fit(scalar, per_feature):
    with pytest.raises(ValueError, match="feature_names must have one name for each of 4, got 1"):
        to_arviz(per_feature, feature_names=["a"])
    with pytest.raises(ValueError, match="every result is a single number"):
        to_arviz(scalar, feature_names=["a"])
