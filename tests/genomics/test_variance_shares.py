import numpy as np
import pytest

from probinterp.genomics import variance_shares

BATCH = np.repeat(["x", "y", "z"], [40, 30, 30])
GROUP = np.array(["a", "b", "c", "a", "b"] * 20)
RNG = np.random.default_rng(0)
LIBRARY = np.exp(RNG.normal(14, 0.7, 100))


def effect(labels, size):
    return size * np.unique(labels, return_inverse=True)[1].astype(float)


def planted():
    noise = RNG.normal(size=(100, 4))
    parts = [effect(BATCH, 2), effect(GROUP, 2), 2 * np.log(LIBRARY), np.zeros(100)]
    return noise + np.column_stack(parts)


def test_each_term_is_found_where_it_was_planted():
    table = variance_shares(planted(), GROUP, BATCH, LIBRARY, names=["t", "g", "l", "n"])
    assert table["finding"].tolist()[:2] == ["batch alone", "group beyond batch"]
    assert table["explained_by_batch_alone"].tolist()[:2] == [True, False]
    strong = {"batch": 0, "group": 1, "library": 2}
    for term, row in strong.items():
        for kind in ("alone", "after"):
            assert table[f"{term}_{kind}"].idxmax() == row
            assert table[f"{term}_{kind}"][row] > 0.5
            assert table[f"{term}_{kind}_p"][row] == pytest.approx(1e-3)
    assert np.all(table["unexplained"].between(0, 1))


def test_shares_are_those_of_least_squares():
    values = planted()[:, :1]
    row = variance_shares(values, GROUP, BATCH, LIBRARY, n_permutations=9).iloc[0]

    def explained(*labels, library=False):
        parts = [(labels_[:, None] == np.unique(labels_)).astype(float) for labels_ in labels]
        parts += [np.ones((100, 1))] + ([np.log(LIBRARY)[:, None]] if library else [])
        design = np.hstack(parts)
        fitted = design @ np.linalg.lstsq(design, values, rcond=None)[0]
        return 1 - ((values - fitted) ** 2).sum() / ((values - values.mean()) ** 2).sum()

    whole, less = explained(GROUP, BATCH, library=True), explained(BATCH, library=True)
    assert row["group_alone"] == pytest.approx(explained(GROUP))
    assert row["group_after"] == pytest.approx(whole - less)
    assert row["unexplained"] == pytest.approx(1 - whole)
    assert row["batch_alone_adjusted"] == pytest.approx(1 - (1 - explained(BATCH)) * 99 / 97)
    adjusted = (1 - less) * 99 / 96 - (1 - whole) * 99 / 94
    assert row["group_after_adjusted"] == pytest.approx(adjusted)


def test_null_p_values_keep_their_level():
    rng = np.random.default_rng(1)
    values = rng.gamma(1, 1, (100, 3000)) * (rng.random((100, 3000)) > 0.5)
    values = (values + 1) * (1 + effect(BATCH, 1))[:, None]
    table = variance_shares(values, GROUP, BATCH, LIBRARY, n_permutations=199)
    for key in ("group_after_p", "library_after_p"):
        assert 0.035 < (table[key] <= 0.05).mean() < 0.065  # Monte-Carlo error .004
    assert table["group_after_adjusted"].mean() == pytest.approx(0, abs=2e-3)
    assert table["explained_by_batch_alone"].mean() > 0.9


def test_groups_that_batches_determine_cannot_be_told_apart():
    group = np.where(BATCH == "x", "a", "b")
    table = variance_shares(planted(), group, BATCH, LIBRARY)
    assert table["group_after_p"].isna().all()
    assert table["group_after"].to_numpy() == pytest.approx(0, abs=1e-12)
    assert table["finding"][0] == "group and batch cannot be separated"
    assert not table["explained_by_batch_alone"].any()


def test_one_group_has_batches_alone():
    table = variance_shares(planted(), ["a"] * 100, BATCH, LIBRARY)
    assert table["explained_by_batch_alone"][0]
    assert table[["group_alone_p", "group_after_p"]].isna().all(axis=None)


def test_constant_factors_show_nothing():
    table = variance_shares(np.zeros((100, 1)), GROUP, BATCH, LIBRARY, n_permutations=9)
    row = table.iloc[0]
    assert row["finding"] == "neither shown"
    assert row[["batch_alone", "group_after_adjusted"]].tolist() == [0, 0]


def test_bad_inputs_are_refused():
    with pytest.raises(ValueError, match=r"library_size must be positive"):
        variance_shares(planted(), GROUP, BATCH, np.zeros(100))
    with pytest.raises(ValueError, match=r"expected library_size for 100 samples, got shape \(2,"):
        variance_shares(planted(), GROUP, BATCH, [1, 2])
    with pytest.raises(ValueError, match=r"4 samples leave no residual"):
        variance_shares(np.eye(4), ["a", "b", "c", "d"], ["x"] * 4, [1, 2, 3, 4])
