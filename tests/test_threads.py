import os
import threading

import pytest
import torch

from probinterp.feature_plan import plan_features
from probinterp.likelihoods import GaussianLikelihood
from probinterp.models import Batch
from probinterp.nn import SparseDecoder
from probinterp.threads import run_in_threads


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_values_come_in_order_from_threads_that_use_one_core(two_threads):
    barrier = threading.Barrier(2, timeout=60)

    def task(name):
        barrier.wait()  # both run at the same time
        return name, torch.get_num_threads(), threading.current_thread() is threading.main_thread()

    found = run_in_threads([lambda: task("a"), lambda: task("b")])
    assert found == [("a", 1, False), ("b", 1, False)]
    assert torch.get_num_threads() == 2


def test_one_task_stays_in_the_calling_thread():
    assert run_in_threads([threading.current_thread]) == [threading.current_thread()]


def test_errors_of_tasks_reach_the_caller(two_threads):
    def fail():
        raise ValueError("in a thread")

    with pytest.raises(ValueError, match="in a thread"):
        run_in_threads([lambda: None, fail])
    assert run_in_threads([lambda: 1, lambda: 2]) == [1, 2]  # the threads live on


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_forked_process_makes_threads_of_its_own(two_threads):
    run_in_threads([int, int])
    child = os.fork()
    if child == 0:
        os._exit(0 if run_in_threads([lambda: 1, lambda: 2]) == [1, 2] else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_a_split_plan_holds_every_feature_once():
    support = torch.zeros(13, 3, dtype=torch.bool)
    support[:7] = True
    support[torch.arange(7, 11), torch.tensor([0, 1, 2, 0])] = True
    parts = plan_features(support).split(3)
    assert [part.n_several for part in parts] == [3, 3, 1]
    several = torch.cat([part.several for part in parts])
    single = torch.cat([group for part in parts for _, group in part.single])
    empty = [part.empty for part in parts]
    assert sorted(several.tolist() + single.tolist() + empty[0].tolist()) == list(range(13))
    assert empty[1:] == [slice(0, 0)] * 2
    n_features = plan_features(torch.ones(5, 2, dtype=torch.bool)).split(4)
    assert [part.several for part in n_features] == [slice(0, 2), slice(2, 4), slice(4, 5)]


@pytest.mark.parametrize("share_single", [0.0, 0.6])
def test_two_threads_decode_what_one_thread_decodes(two_threads, monkeypatch, share_single):
    monkeypatch.setattr("probinterp.sparse_decoding.PRODUCTS_PER_THREAD", 1)
    decoder, likelihood = SparseDecoder(40, 4, 16, chunk_size=3), GaussianLikelihood(40)
    batch, z = Batch(torch.randn(30, 40)), torch.randn(30, 4, requires_grad=True)
    support = torch.ones(40, 4, dtype=torch.bool)
    support[: int(share_single * 40), 1:] = False
    w = torch.randn(40, 4, requires_grad=True)

    def results():
        values = decoder.observe(z, w, likelihood, batch, support).log_prob(batch.x)
        wrt = [z, w, *decoder.parameters(), *likelihood.parameters()]
        eta = decoder(z, w, support)
        again = torch.autograd.grad(eta.sin().sum(), wrt[:-1])
        return [values, *torch.autograd.grad(values.sum(), wrt), eta, *again]

    two = results()
    assert all(torch.equal(a, b) for a, b in zip(two, results(), strict=True))  # same bits again
    torch.set_num_threads(1)
    for a, b in zip(two, results(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
