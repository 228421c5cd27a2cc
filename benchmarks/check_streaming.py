"""Time and memory of a check against making its replicates and throwing them away.

Gaussian replicates of N x G, drawn from a factor model with fixed loadings: the time of a check
over that of generation alone, interleaved (CPU time with one thread, else wall time), and the
growth of the peak resident size during the check, in units of one replicate, in a fresh process.
The whole stack of replicates would take as many units as there are draws.

    python benchmarks/check_streaming.py --draws 2000        # the numbers of the table
    python benchmarks/check_streaming.py --draws 50 --rounds 3
"""

import argparse
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.distributions import Independent, Normal

from probinterp.criticism import FunctionDraw, discrepancies, pop_pc, pop_pc_suite

N, G, K = 5000, 2000, 10
CHECKS = {
    "mean": discrepancies.mean,
    "feature_variance": discrepancies.feature_variance,
    "zero_fraction": discrepancies.zero_fraction,
    "mean_negative_log_likelihood": discrepancies.mean_negative_log_likelihood,
}


def draws(n_draws):
    """Factor model draws; the law for scoring is that of independent features."""
    weights = torch.randn(K, G)
    law = Independent(Normal(torch.zeros(G), 1 + weights.square().sum(0).sqrt()).expand((N, G)), 1)

    def replicate():
        return torch.addmm(torch.randn(N, G), torch.randn(N, K), weights)

    return [FunctionDraw(replicate, lambda x: law)] * n_draws


def generate(some):
    for draw in some:
        draw.replicate()


def race(n_draws, rounds, clock):
    some, x = draws(n_draws), torch.randn(N, G)
    runs = {"generation alone": lambda: generate(some)}
    for name, check in CHECKS.items():
        runs[name] = lambda check=check: pop_pc(some, x, check, reference=some[0])
    runs["all four in one pass"] = lambda: pop_pc_suite(some, x, CHECKS, reference=some[0])
    seconds = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
    alone = seconds["generation alone"]
    for name, each in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(each, alone, strict=True))
        yield name, statistics.median(each), ratio


def status(key):
    return int(re.search(key + r":\s+(\d+)", Path("/proc/self/status").read_text())[1])


def peak_units(check, n_draws):
    """Growth of the peak during a check, in replicates."""
    some, x = draws(n_draws), torch.randn(N, G)
    pop_pc(some[:2], x[:, :], CHECKS["mean"], reference=some[0])  # load libraries
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    suite = CHECKS if check == "all" else {check: CHECKS[check]}
    pop_pc_suite(some, x, suite, reference=some[0])
    return (status("VmHWM") - before) * 1024 / (4 * N * G)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-of")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print(peak_units(options.memory_of, options.draws))
        return
    print(f"{N} x {G}, {options.draws} draws, {options.threads} thread(s)")
    clock = time.process_time if options.threads == 1 else time.perf_counter
    for name, seconds, ratio in race(options.draws, options.rounds, clock):
        print(f"  {name:30s} {seconds:8.2f} s   {ratio:5.2f} x generation alone", flush=True)
    for name in (*CHECKS, "all"):
        command = [sys.executable, __file__, "--memory-of", name, "--draws", str(options.draws)]
        run = subprocess.run(command, check=True, capture_output=True, text=True)
        print(f"  peak extra memory, {name}: {float(run.stdout):.2f} replicates", flush=True)


if __name__ == "__main__":
    main()
