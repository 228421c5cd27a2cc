import pytest
import torch

from probinterp.criticism import discrepancies
from probinterp.jobs.discrepancy_names import available_discrepancies, find_discrepancy, suite_of

X = torch.tensor([[0.0, 4.0], [2.0, 6.0], [4.0, 0.0], [6.0, 2.0]])


def test_names_and_arguments_are_found():
    assert find_discrepancy("mean") is discrepancies.mean
    assert find_discrepancy("quantile(0.5)")(X, None) == 3
    assert find_discrepancy("quantile( .5 )")(X, None) == 3
    assert find_discrepancy("per_feature(mean)")(X, None).tolist() == [3, 3]
    assert find_discrepancy("per_feature(quantile(1))")(X, None).tolist() == [6, 6]


def test_words_in_quotes_are_columns():
    columns = {"study": ["a", "a", "b", "b"]}
    found = find_discrepancy('per_group(mean, "study")', columns)
    assert found(X, None).tolist() == [3, 3]
    assert found.labels == ("a", "b")
    assert list(suite_of(["mean", "per_group(mean, 'study')"], columns)) == [
        "mean",
        "per_group(mean, 'study')",
    ]


def test_every_offered_name_is_a_discrepancy_or_says_its_arguments():
    offered = available_discrepancies()
    assert "zero_fraction" in offered
    assert "quantile(q)" in offered
    for text in offered:
        if "(" not in text:
            assert find_discrepancy(text) is getattr(discrepancies, text)
    assert not any(text.startswith(("check_discrepancy", "discrepancy")) for text in offered)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("quantile", ValueError, "quantile is not a discrepancy: write quantile\\(q\\)"),
        ("quantile(2)", ValueError, "q must be a probability in \\[0, 1\\], got 2"),
        ("quantile(.1, .2, .3)", ValueError, "quantile\\(q\\) is wanted"),
        ("median", KeyError, "no discrepancy 'median'; available: autocorrelation"),
        ("mean(", ValueError, "cannot read the discrepancy 'mean\\('"),
        ("3", ValueError, "3 is not a discrepancy: it is a value"),
        ("mean.real", ValueError, "cannot read 'mean.real'"),
        ("mean + mean", ValueError, "cannot read 'mean \\+ mean'"),
        ("quantile(q=.5)", ValueError, "arguments are numbers"),
        ("__import__('os')", KeyError, "no discrepancy '__import__'"),
        ("per_group(mean, 'batch')", KeyError, "no column 'batch'; available: \\['study'\\]"),
        ("check_discrepancy", KeyError, "no discrepancy 'check_discrepancy'"),
        ("per_feature(quantile)", ValueError, "quantile is not a discrepancy: write quantile"),
        ("per_feature(3)", ValueError, "a function of x and a draw, got int\\.$"),
    ],
)
def test_what_cannot_be_read_is_refused(text, error, message):
    with pytest.raises(error, match=message):
        find_discrepancy(text, {"study": ["a", "b"]})
