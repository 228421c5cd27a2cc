import math

import pytest
import torch
from scipy.special import rel_entr, softmax

from probinterp.criticism.logit_drift import logit_drift


def test_drift_is_that_of_scipy_and_zero_for_the_same():
    reference, logits = 5 * torch.randn(7, 4), 5 * torch.randn(7, 4)
    found = logit_drift(reference, logits)
    p, q = (softmax(v.double().numpy(), axis=1) for v in (reference, logits))
    torch.testing.assert_close(found.kl, torch.from_numpy(rel_entr(p, q).sum(1)))
    torch.testing.assert_close(found.largest, (logits - reference).double().abs().max(1).values)
    same = logit_drift(reference, reference)
    assert same.kl.max() == same.largest.max() == 0


def test_two_classes_by_hand_and_a_shift_that_changes_no_probability():
    drift = logit_drift(torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3), 0.0]]))
    assert drift.kl.item() == pytest.approx(0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))
    shifted = logit_drift(torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, 5.0]]))
    assert shifted.kl.item() == pytest.approx(0, abs=1e-12)
    assert shifted.largest.item() == 3


def test_draws_are_compared_with_the_same_reference():
    reference, draws = torch.randn(5, 3), torch.randn(2, 5, 3)
    found = logit_drift(reference, draws)
    assert torch.equal(found.kl[1], logit_drift(reference, draws[1]).kl)
    assert found.largest.shape == (2, 5)
    with pytest.raises(ValueError, match="not of the same images and classes"):
        logit_drift(reference, torch.randn(5, 4))
