import math

import pytest
import torch

from probinterp.criticism import drift_check


@pytest.fixture
def logits():
    torch.manual_seed(0)
    mean = 2 * torch.randn(40, 5)
    return mean + torch.randn(40, 5), mean + torch.randn(99, 40, 5), mean


def test_drift_equals_a_loop(logits):
    reference, draws, mean = logits
    found = drift_check(reference, draws[:3], mean)
    for i in (0, 17):
        p = torch.softmax(reference[i].double(), 0).tolist()
        for s, changed in enumerate([*draws[:3], mean]):
            q = torch.softmax(changed[i].double(), 0).tolist()
            kl = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
            largest = (changed[i] - reference[i]).abs().max().item()
            got = (
                (found.kl_mean, found.largest_mean)
                if s == 3
                else (found.kl_draws[s], found.largest_draws[s])
            )
            assert got[0][i].item() == pytest.approx(kl, rel=1e-9)
            assert got[1][i].item() == pytest.approx(largest, rel=1e-6)
    assert found.summary()["kl_draws"] == pytest.approx(found.kl_draws.mean().item())


def test_p_values_compare_the_network_with_draws_around_the_mean(logits):
    reference, draws, mean = logits
    found = drift_check(reference, draws, mean)
    log_q = mean.double().log_softmax(-1)

    def from_mean(x):
        log_p = x.double().log_softmax(-1)
        return (log_p.exp() * (log_p - log_q)).sum(-1)

    above = from_mean(draws) >= from_mean(reference)
    assert torch.equal(found.images["kl"].p_value[:, 0], above.double().mean(0))
    pooled = (from_mean(draws).mean(1) >= from_mean(reference).mean()).double().mean()
    assert found.pooled["kl"].p_value == pooled
    assert found.pooled["kl"].calibrated
    assert found.pooled["kl"].p_two_sided > 0.01
    assert found.images["kl"].ks_p[0] > 0.01


def test_network_far_from_all_draws_is_flagged_and_an_exact_proxy_is_not(logits):
    reference, draws, mean = logits
    far = drift_check(mean + 3 * (reference - mean), draws, mean)
    assert far.pooled["largest change"].p_two_sided == pytest.approx(2 / 100)
    exact = drift_check(mean, [mean] * 50, mean)
    assert exact.kl_mean.amax() == exact.kl_draws.amax() == exact.largest_draws.amax() == 0
    assert exact.pooled["kl"].p_value == 1
    assert exact.pooled["kl"].p_two_sided > 0.02


def test_functions_are_called_one_at_a_time_and_once(logits):
    reference, draws, mean = logits
    called = []

    def logits_of(index):
        def call():
            called.append(index)
            return draws[index]

        return call

    lazy = drift_check(lambda: reference, (logits_of(s) for s in range(9)), lambda: mean)
    assert called == list(range(9))
    plain = drift_check(reference, draws[:9], mean)
    assert torch.equal(lazy.kl_draws, plain.kl_draws)
    assert torch.equal(lazy.images["kl"].p_rank, plain.images["kl"].p_rank)


def test_refusals(logits):
    reference, draws, mean = logits
    with pytest.raises(ValueError, match=r"same shape \(N, C\), got \(40, 5\) and \(39, 5\)"):
        drift_check(reference, draws, mean[1:])
    with pytest.raises(ValueError, match=r"\(40, 5\) like those of the network, got \(40, 4\)"):
        drift_check(reference, draws[..., 1:], mean)
    with pytest.raises(ValueError, match="draws is empty"):
        drift_check(reference, [], mean)
