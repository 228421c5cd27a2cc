import numpy as np
import pandas as pd
import pytest
import torch

from probinterp.reporting.arrays import as_array, as_count, as_names


@pytest.mark.parametrize(
    "values",
    [
        [[1, 2], [3, 4]],
        np.array([[1, 2], [3, 4]], dtype=np.int8),
        pd.DataFrame({"a": [1, 3], "b": [2, 4]}),
        torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True),
        torch.tensor([[1, 2], [3, 4]], dtype=torch.bfloat16),
    ],
    ids=["list", "int8", "frame", "gradient", "bfloat16"],
)
def test_numbers_of_every_container_are_the_same(values):
    array = as_array("scores", values, 2)
    assert array.dtype == np.float64
    assert array.tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_the_array_is_a_copy():
    values = np.ones(3)
    as_array("x", values, 1)[0] = 5.0
    assert values.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("values", "error", "text"),
    [
        ([1.0, 2.0], ValueError, r"scores must have 2 dimension\(s\), got shape \(2,\)"),
        (np.empty((0, 3)), ValueError, r"scores is empty: shape \(0, 3\)"),
        ([["a", "b"]], TypeError, "scores must hold numbers, got list"),
        ([[1.0], [1.0, 2.0]], TypeError, "scores must hold numbers, got list"),
        ([[1.0, np.nan]], ValueError, r"scores must be finite, got 1 NaN or infinite value\(s\)"),
        ([[np.inf, np.nan]], ValueError, "got 2 NaN"),
    ],
)
def test_bad_arrays_are_refused(values, error, text):
    with pytest.raises(error, match=text):
        as_array("scores", values, 2, finite=True)


def test_names_count_from_one_by_default():
    assert as_names("feature_names", None, 3) == ["1", "2", "3"]
    assert as_names("feature_names", pd.Index(["a", 2]), 2) == ["a", "2"]


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["a", "b"], "feature_names must have one name for each of 3, got 2"),
        ("abc", "got the string 'abc'"),
    ],
)
def test_bad_names_are_refused(names, text):
    with pytest.raises(ValueError, match=text):
        as_names("feature_names", names, 3)


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "3", None])
def test_bad_counts_are_refused(value):
    with pytest.raises(ValueError, match="n_top must be a positive whole number, got"):
        as_count("n_top", value)


def test_numpy_integers_are_counts():
    assert as_count("n_top", np.int64(4)) == 4
