import subprocess
import sys
import weakref

import pytest
import torch
from torch.distributions import Independent, Normal

from probinterp.criticism import FunctionDraw, pop_pc
from probinterp.criticism.discrepancies import mean_negative_log_likelihood
from probinterp.criticism.stream import seeded


@pytest.mark.parametrize("kind", ["plugin", "realised"])
def test_draws_and_replicates_are_let_go_one_by_one(kind):
    """A discrepancy that returns a view of the replicate must not keep it in memory either."""
    alive, most = weakref.WeakSet(), 0

    class Draw:
        def __init__(self):
            alive.add(self)

        def replicate(self):
            return torch.randn(4, 2)

        def likelihood(self, x):
            return Independent(Normal(torch.zeros(4, 2), 1.0), 1)

    def draws():
        nonlocal most
        for _ in range(20):
            most = max(most, len(alive))
            yield Draw()

    result = pop_pc(draws(), torch.zeros(4, 2), lambda x, draw: x[0], kind=kind)
    assert most <= 3
    assert result.replicated.untyped_storage().nbytes() == result.replicated.numel() * 4


PEAK = """
import re, torch
from torch.distributions import Independent, Normal
from probinterp.criticism import FunctionDraw, discrepancies, pop_pc

def status(key):
    return int(re.search(key + r":\\s+(\\d+)", open("/proc/self/status").read())[1])

def draws(n_draws, n, g):
    for _ in range(n_draws):
        law = Independent(Normal(torch.zeros(n, g), 1.0), 1)
        yield FunctionDraw(law.sample, lambda x, law=law: law)

def check(n_draws, n, g, kind):
    x = torch.randn(n, g)
    before = status("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")  # resets the peak
    pop_pc(draws(n_draws, n, g), x, discrepancies.{discrepancy}, kind=kind)
    return (status("VmHWM") - before) / 1024

check(2, 10, 10, "realised")
print(check(200, 500, 1000, "{kind}"))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
@pytest.mark.parametrize(
    ("kind", "discrepancy"),
    [
        ("realised", "feature_variance"),
        pytest.param("plugin", "mean_negative_log_likelihood", marks=pytest.mark.slow),
        pytest.param("plugin", "residual_correlation", marks=pytest.mark.slow),
    ],
)
def test_peak_extra_memory_of_200_draws_of_500_by_1000(kind, discrepancy):
    """The replicates together would take 381 MiB; one takes 1.9."""
    code = PEAK.format(kind=kind, discrepancy=discrepancy)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 64


def test_seeded_block_is_reproducible_and_restores_the_generator(device):
    state = torch.get_rng_state()
    values = []
    for _ in range(2):
        with seeded(7, device):
            values.append(torch.rand(3, device=device).tolist())
    assert values[0] == values[1]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.gpu
def test_check_on_the_gpu_equals_the_check_on_the_cpu():
    replicates = torch.randn(10, 30, 4)

    def draws(device):
        law = Independent(Normal(torch.zeros(30, 4, device=device), 1.0), 1)
        return [FunctionDraw(lambda r=r: r.to(device), lambda x: law) for r in replicates]

    x = torch.randn(30, 4)
    on_cpu = pop_pc(draws("cpu"), x, mean_negative_log_likelihood)
    on_gpu = pop_pc(draws("cuda"), x.cuda(), mean_negative_log_likelihood)
    torch.testing.assert_close(on_gpu.replicated, on_cpu.replicated)
    assert on_gpu.p_value.device.type == "cpu"
    assert on_gpu.p_value == on_cpu.p_value


def test_a_discrepancy_that_changes_its_dtype_is_refused():
    """The whole numbers of the first value would round those after it."""
    replicates = iter([torch.zeros(2, 1), torch.ones(2, 1)])
    draws = [FunctionDraw(lambda: next(replicates), lambda x: None)] * 2
    reference = FunctionDraw(lambda: None, lambda x: None)

    def changing(x, draw):
        return torch.tensor(0) if x.sum() == 0 else x.mean() / 2

    with pytest.raises(TypeError, match=r"changed dtype: first torch\.int64, then torch\.float32"):
        pop_pc(draws, torch.zeros(2, 1), changing, reference=reference)
