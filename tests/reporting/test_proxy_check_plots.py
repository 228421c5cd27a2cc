"""Heat map of the predictive checks of a proxy."""

import numpy as np
import pytest

from probinterp.reporting import plot_proxy_checks

Z = np.array([[0.5, -7.0], [np.nan, 2.0]])
NAMES = {"discrepancies": ["nmse", "layer_correlation"], "cells": ["layer 0", "all"]}


def test_cells_have_the_colour_of_their_z_and_dots_where_flagged():
    ax = plot_proxy_checks(Z, [[False, True], [False, True]], title="CLT", **NAMES)
    mesh, dots = ax.collections
    shown = mesh.get_array()
    assert shown.mask.tolist() == [[False, False], [True, False]]
    assert shown.compressed().tolist() == [0.5, -7.0, 2.0]
    assert mesh.get_clim() == (-5, 5)
    assert dots.get_offsets().tolist() == [[1.5, 0.5], [1.5, 1.5]]
    assert [label.get_text() for label in ax.get_yticklabels()] == NAMES["discrepancies"]
    assert ax.get_ylim() == (2, 0)  # the first row on top


def test_shapes_must_fit():
    with pytest.raises(ValueError, match=r"must have shape \(2, 2\) like z, got \(2,\)"):
        plot_proxy_checks(Z, [False, True], **NAMES)
    with pytest.raises(ValueError, match="cells"):
        plot_proxy_checks(Z, np.isnan(Z), discrepancies=["a", "b"], cells=["c"])
