"""Numbers that are drawn are those that were given."""

from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from probinterp.reporting import (
    plot_contributions,
    plot_faithfulness,
    plot_feature_card,
    plot_reconstruction,
    plot_replacement,
)


class Estimates(NamedTuple):
    estimate: Any
    low: Any
    high: Any


class Line(NamedTuple):
    kept_fraction: Any
    accuracy: Any
    low: Any
    high: Any


class Feature(NamedTuple):
    layer: int
    feature: int
    images: Any
    heat_maps: Any
    labels: Any
    firing_rate: float
    target_norms: Any


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def test_reconstruction_draws_good_values_and_marks_those_below_the_floor():
    good = Estimates(torch.tensor([0.5, 0.9]), torch.tensor([0.4, 0.8]), torch.tensor([0.6, 1.0]))
    bad = Estimates([-3.0, 0.2], [-4.0, 0.1], [-2.0, 0.3])
    ax = plot_reconstruction({"good": good, "bad": bad})
    drawn = [line.get_ydata().tolist() for line in ax.lines if line.get_marker() == "o"]
    assert drawn[0] == pytest.approx([0.5, 0.9])
    assert drawn[1] == [0.2]
    (marked,) = (line for line in ax.lines if line.get_marker() == "v")
    assert marked.get_ydata().tolist() == [0.0]
    with pytest.raises(ValueError, match="at least one proxy"):
        plot_reconstruction({})


def test_replacement_is_in_points_with_the_margin_as_a_band():
    ax = plot_replacement(
        ["all", "cls"],
        [-0.02, 0.0],
        [-0.03, -0.005],
        [-0.01, 0.004],
        margin=0.01,
        decisions=["changes", "preserves"],
    )
    points = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o"]
    assert points == pytest.approx([-2.0, 0.0])
    assert ax.patches[0].get_x() == pytest.approx(-1.0)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["changes", "preserves"]
    with pytest.raises(ValueError, match="as many decisions, got 1"):
        plot_replacement(["a", "b"], [0, 0], [0, 0], [0, 0], margin=0.1, decisions=["changes"])


def test_contributions_leave_out_what_cannot_be():
    ax = plot_contributions([[1.0, 0.25], [0.0, 0.75]])
    assert sorted(text.get_text() for text in ax.texts) == ["0.25", "0.75", "1.00"]


def test_contributions_without_a_single_score():
    ax = plot_contributions(np.full((2, 2), np.nan))
    assert not ax.texts


def test_faithfulness_draws_random_orders_behind():
    line = Line([1.0, 0.5, 0.0], [0.9, 0.5, 0.1], [0.8, 0.4, 0.0], [1.0, 0.6, 0.2])
    ax = plot_faithfulness({"contribution": line}, [[0.9, 0.6, 0.1]], network=0.95)
    assert ax.lines[0].get_ydata().tolist() == pytest.approx([90, 60, 10])
    assert ax.lines[1].get_ydata().tolist() == pytest.approx([90, 50, 10])
    assert ax.lines[2].get_ydata()[0] == pytest.approx(95)
    with pytest.raises(ValueError, match="at least one order"):
        plot_faithfulness({})


def test_feature_card_shows_every_image_and_its_map():
    maps = torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(0))
    card = Feature(1, 7, torch.tensor([4, 2, 9]), maps, torch.tensor([0, 1, -1]), 0.031, [0, 2.0])
    ax = plot_feature_card(card, torch.zeros(3, 8, 8), class_names=["cat", "dog"])
    assert len(ax.images) == 6
    assert np.asarray(ax.images[1].get_array()) == pytest.approx(maps[0].numpy())
    assert [text.get_text() for text in ax.texts] == ["cat", "dog", "?"]
    assert "active in 3.1 % of tokens" in " ".join(ax.get_title(loc="left").split())
    with pytest.raises(ValueError, match="3 images, got 2 pictures"):
        plot_feature_card(card, torch.zeros(2, 8, 8))
