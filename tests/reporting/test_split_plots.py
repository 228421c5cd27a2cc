import numpy as np
import pytest
from matplotlib.colors import to_hex

from probinterp.criticism import CrossResult, DividedResult
from probinterp.reporting import block_p_values, fold_effects, fold_p_values
from probinterp.reporting.uniform_band import GRID

BLUE, VERMILION = "#0072b2", "#d55e00"


@pytest.fixture
def make_splits(make_result):
    def make(heldout):
        """Checks of splits whose replicates are 0..98; (K,) or (K, G) held-out values."""
        heldout = np.asarray(heldout, dtype=float)
        replicated = np.arange(99.0)
        if heldout.ndim == 2:
            replicated = np.repeat(replicated[:, None], heldout.shape[1], axis=1)
        return tuple(make_result(replicated, value[None], discrepancy="mean") for value in heldout)

    return make


def markers(ax, shape, color):
    lines = [line for line in ax.lines if line.get_marker() == shape and len(line.get_xdata())]
    return [line.get_xydata().tolist() for line in lines if to_hex(line.get_color()) == color]


# fold_p_values


def test_folds_are_points_coloured_where_they_are_rejected(make_splits):
    result = CrossResult(make_splits([48.5, 98.5, 20.5]), (), 0)
    ax = fold_p_values(result)
    assert markers(ax, "o", BLUE) == [[[1, 50 / 99], [3, 78 / 99]]]
    assert markers(ax, "o", VERMILION) == [[[2, 0.0]]]
    band = ax.patches[0]
    assert (band.get_y(), band.get_y() + band.get_height()) == (0.025, 0.975)
    first, second = ax.get_title(loc="left").split("\n")[:2]
    assert first == "mean: 3 folds, 1 rejected"
    assert second.startswith(f"together p = {result.p_pooled:.3g}")
    assert ax.texts[0].get_text() == f"z = {result.z[0]:+.2g}"


def test_folds_of_one_draw_have_no_effect_size(make_result):
    folds = tuple(make_result([1.0], [value]) for value in (0.0, 2.0))
    ax = fold_p_values(CrossResult(folds, (), 0))
    assert len(ax.texts) == 0
    assert "average z not defined" in " ".join(ax.get_title(loc="left").split())


def test_infinite_effects_are_written_with_a_sign(make_result):
    folds = tuple(make_result([1.0, 1.0], [value]) for value in (0.0, 2.0))
    texts = [text.get_text() for text in fold_p_values(CrossResult(folds, (), 0)).texts]
    assert texts == ["z = -∞", "z = +∞"]


def test_folds_with_several_values_have_effects_instead(make_splits):
    result = CrossResult(make_splits([[1.0, 2.0], [3.0, 4.0]]), (), 0)
    with pytest.raises(ValueError, match="mean has 2; use fold_effects"):
        fold_p_values(result)
    scalar = CrossResult(make_splits([1.0, 2.0]), (), 0)
    with pytest.raises(ValueError, match="alpha must lie between 0 and 1, got 0"):
        fold_p_values(scalar, alpha=0)
    with pytest.raises(ValueError, match="is a single number; use fold_p_values"):
        fold_effects(scalar)


# fold_effects


def test_effects_of_all_folds_are_drawn_largest_average_on_top(make_splits):
    result = CrossResult(make_splits([[49.0, 98.0, 0.0], [60.0, 90.0, 20.0]]), (), 0)
    ax = fold_effects(result, feature_names=["a", "b", "c"], n_top=2)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["b", "c"]
    z = result.z.numpy()
    points = np.concatenate([line.get_xydata() for line in ax.lines if line.get_marker() == "o"])
    for row, feature in ((0.5, 1), (1.5, 2)):
        at = points[points[:, 1] == row, 0]
        assert sorted(at) == pytest.approx(sorted(z[:, feature]))
    (average,) = markers(ax, "|", VERMILION)
    assert [x for x, _ in average] == pytest.approx(z.mean(0)[[1, 2]])
    assert ax.get_title(loc="left") == "mean: the 2 largest effects over 2 folds"


def test_labels_of_the_result_name_the_values_and_blocks_are_called_blocks(make_splits):
    blocks = make_splits([[1.0, 90.0], [2.0, 80.0]])
    for block in blocks:
        object.__setattr__(block, "labels", ("north", "south"))
    ax = fold_effects(DividedResult(blocks, (), 0, 0))
    assert [text.get_text() for text in ax.get_yticklabels()] == ["north", "south"]
    assert "2 blocks" in ax.get_title(loc="left")


# block_p_values


def test_blocks_are_compared_with_uniform_values(make_splits):
    result = DividedResult(make_splits([90.5, 92.5, 95.5, 97.5, 98.5, 80.5]), (), 0, 0)
    ax = block_p_values(result)
    p = result.p_rank.numpy()
    expected = np.array([(p <= u).mean() for u in GRID]) - GRID
    np.testing.assert_allclose(ax.lines[1].get_ydata(), expected, atol=1e-12)
    (rug,) = markers(ax, "|", "#000000")
    assert [x for x, _ in rug] == pytest.approx(p)
    heading = " ".join(ax.get_title(loc="left").split())
    assert f"distance {result.ks_distance:.2g}, p = {result.p_value:.3g}" in heading
    assert "outside the 95% band of uniform values, too many below" in heading


def test_blocks_with_several_values_are_refused(make_splits):
    result = DividedResult(make_splits(np.ones((3, 2))), (), 0, 0)
    with pytest.raises(ValueError, match="mean has 2; use fold_effects"):
        block_p_values(result)
