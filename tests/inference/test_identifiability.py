"""Anchors and covariances against what can be counted by hand."""

import pytest
import torch

from probinterp import simulate
from probinterp.inference.identifiability import anchor_report, covariance_condition


def test_true_mask_of_the_toy_has_three_anchors_each_and_a_rotation_none():
    support = simulate.sparse_vae_toy(n=2, seed=0).support
    report = anchor_report(support)
    assert report.counts.tolist() == [3, 3]
    assert [a.tolist() for a in report.anchors] == [[0, 1, 2], [3, 4, 5]]
    assert report.identified.all()
    angle = torch.tensor(0.7)
    rotation = torch.stack(
        [torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])]
    )
    rotated = support.float() @ rotation
    dense = anchor_report(rotated.abs() > 1e-2)
    assert dense.counts.tolist() == [0, 0]
    assert not dense.identified.any()


def test_covariance_condition_by_hand():
    first = torch.tensor([1.0, -1.0, 2.0, -2.0])
    scores = torch.stack([first, 3 * first, torch.tensor([1.0, 1.0, -1.0, -1.0])], 1)
    found = covariance_condition(scores)
    # variance of the first is 10/3, its covariance with the second 10: violated; third: 0
    assert found.violated.tolist() == [True, False, False]
    torch.testing.assert_close(found.ratio, torch.tensor([3.0, 3.0, 0.0]))
    assert covariance_condition(first.unsqueeze(1)).ratio.tolist() == [0.0]


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"must be boolean with shape \(G, K\), got torch.float32"):
        anchor_report(torch.ones(3, 2))
    with pytest.raises(ValueError, match=r"N >= 2, got \(1, 3\)"):
        covariance_condition(torch.ones(1, 3))
