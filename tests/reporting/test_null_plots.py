import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from probinterp.criticism import NullCheckResult
from probinterp.reporting import null_check_matrix

VERMILION = "#d55e00"


@pytest.fixture
def make_null():
    def make(names, heldout):
        """Replicates of A under B's discrepancy lie A sd from B's own if A > B, else with them."""
        rng = np.random.default_rng(0)
        m = len(names)
        x = rng.normal(size=(m, m, 200))
        for judge in range(m):
            for generator in range(judge + 1, m):
                x[judge, generator] += generator
        return NullCheckResult(tuple(names), torch.tensor(x), torch.tensor(heldout))

    return make


def cells(ax):
    """Text of every cell by row and column."""
    return {(int(t.get_position()[1]), int(t.get_position()[0])): t.get_text() for t in ax.texts}


def test_rows_replicate_and_columns_judge(make_null):
    result = make_null(["a", "b", "c"], [0.0, 0.0, 9.0])
    ax = null_check_matrix(result)
    drawn = np.ma.filled(ax.collections[0].get_array(), np.nan).reshape(3, 3)
    np.testing.assert_allclose(drawn, result.kl.numpy().T)
    accepted = result.acceptance().numpy()
    assert cells(ax)[2, 0] == f"{result.kl[0, 2]:.2f}\n{accepted[0, 2]:.0%}"
    assert cells(ax)[0, 2] == f"{result.kl[2, 0]:.2f}\n{accepted[2, 0]:.0%}"
    assert result.kl[0, 2] > result.kl[2, 0]  # the two are told apart
    assert [t.get_text() for t in ax.get_xticklabels()] == ["a", "b", "c"]
    assert (ax.get_ylabel(), ax.get_xlabel()) == ("replicates of", "discrepancy of")


def test_the_diagonal_holds_heldout_p_values_and_frames_rejected_ones(make_null):
    result = make_null(["a", "b", "c"], [0.0, 0.0, 9.0])
    ax = null_check_matrix(result)
    p = result.p_two_sided.tolist()
    assert [cells(ax)[i, i] for i in range(3)] == [f"p = {value:.2g}" for value in p]
    assert p[2] == pytest.approx(2 / 201)
    framed = [to_hex(patch.get_edgecolor()) == VERMILION for patch in ax.patches]
    assert framed == [False, False, True]


def test_kolmogorov_distances_carry_their_error(make_null):
    result = make_null(["a", "b"], [0.0, 0.0])
    ax = null_check_matrix(result, measure="ks")
    expected = f"{result.ks[0, 1]:.2f} ± {result.ks_error[0, 1]:.2f}"
    assert cells(ax)[1, 0].split("\n")[0] == expected
    assert ax.collections[0].get_clim() == (0, 1)


def test_many_models_are_drawn_without_numbers_and_long_names_get_room(make_null):
    many = null_check_matrix(make_null([f"model {i}" for i in range(13)], [0.0] * 13))
    assert len(many.texts) == 0
    short = null_check_matrix(make_null(["a", "b"], [0.0, 0.0])).figure.get_size_inches()
    names = ["a mixture with one component", "a mixture with three components"]
    long = null_check_matrix(make_null(names, [0.0, 0.0])).figure.get_size_inches()
    assert (long - short > 1.5).all()


def test_bad_options_are_refused(make_null):
    result = make_null(["a", "b"], [0.0, 0.0])
    with pytest.raises(ValueError, match="measure must be one of kl, ks, got 'tv'"):
        null_check_matrix(result, measure="tv")
    with pytest.raises(ValueError, match="alpha must lie between 0.01"):
        null_check_matrix(result, alpha=0.001)
