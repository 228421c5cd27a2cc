"""Race the sparse decoder against a loop over features, a flat version and the matrix product.

One step is the Gaussian log likelihood of a batch and its gradients by codes, loadings, trunk,
heads and noise scales. Variants run in turn, A B C A B C; ratios are medians over the rounds. No
time is taken before all variants agree. One thread is timed in CPU time, more threads in wall
time, which needs a quiet machine. Memory is the growth of the peak resident size during one step
of a fresh process.

    python benchmarks/sparse_decoder.py                 # one thread
    python benchmarks/sparse_decoder.py --threads 2
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pyro
import torch
from torch.nn.functional import relu

from probinterp.likelihoods import GaussianLikelihood
from probinterp.models import Batch
from probinterp.nn import SparseDecoder

SIZES = {  # B, G, K, H
    "B512 G558 K15 H100": (512, 558, 15, 100),
    "B256 G2000 K20 H128": (256, 2000, 20, 128),
    "B100 G500 K15 H128": (100, 500, 15, 128),
}
SINGLE_FACTOR_SHARE = 0.6
TOLERANCE = 1e-5


class Task:
    """Data and modules of one size, and a step in each variant."""

    def __init__(self, n_obs, n_features, n_factors, n_hidden):
        torch.manual_seed(0)
        self.decoder = SparseDecoder(n_features, n_factors, n_hidden)
        self.likelihood = GaussianLikelihood(n_features)
        self.batch = Batch(torch.randn(n_obs, n_features))
        self.z = torch.randn(n_obs, n_factors, requires_grad=True)
        self.w = torch.randn(n_features, n_factors, requires_grad=True)
        self.support = torch.ones(n_features, n_factors, dtype=torch.bool)
        single = torch.randperm(n_features)[: int(SINGLE_FACTOR_SHARE * n_features)]
        self.support[single] = False
        self.support[single, torch.randint(0, n_factors, (len(single),))] = True
        self.flops = 6 * n_obs * n_features * (n_factors * n_hidden + n_hidden**2 + n_hidden)

    def loop(self, support=None):
        """One feature after the other, differentiated by autograd."""
        first, second, bias = self.decoder.first.T, self.decoder.second.T, self.decoder.second_bias
        loadings = self.w if support is None else self.w * support
        columns = [
            relu(torch.addmm(bias, relu((self.z * w) @ first), second)) @ head
            for w, head in zip(loadings, self.decoder.heads, strict=True)
        ]
        eta = torch.stack(columns, 1) + self.decoder.bias
        return self.likelihood(eta, self.batch).log_prob(self.batch.x)

    def flat(self):
        """All activations (B, G, H) at once, differentiated by autograd."""
        masked = self.z.unsqueeze(1) * self.w
        hidden = relu(masked @ self.decoder.first.T)
        hidden = relu(hidden @ self.decoder.second.T + self.decoder.second_bias)
        eta = (hidden * self.decoder.heads).sum(-1) + self.decoder.bias
        return self.likelihood(eta, self.batch).log_prob(self.batch.x)

    def recompute(self):
        """Chunks of features; activations computed again in the backward pass."""
        eta = self.decoder(self.z, self.w)
        return self.likelihood(eta, self.batch).log_prob(self.batch.x)

    def stream(self, support=None):
        """Loss and gradients chunk by chunk."""
        observed = self.decoder.observe(self.z, self.w, self.likelihood, self.batch, support)
        return observed.log_prob(self.batch.x)

    def single(self):
        """Stream with 60 % of features known to have one factor."""
        return self.stream(self.support)

    def bfloat16(self):
        """Stream with the H x H products in bfloat16."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.stream()

    def step(self, variant):
        """Value and gradients of one variant."""
        parameters = [*self.decoder.parameters(), *self.likelihood.parameters()]
        value = getattr(self, variant)()
        return value, torch.autograd.grad(value.sum(), [self.z, self.w, *parameters])


def relative_difference(task, variant, reference):
    """Largest relative distance, in norm, of the value and of each gradient."""
    value, gradients = task.step(variant)
    pairs = zip((value, *gradients), reference, strict=True)
    return max(((a - b).norm() / b.norm()).item() for a, b in pairs)


def check(task):
    value, gradients = task.step("loop")
    reference = (value, *gradients)
    differences = {v: relative_difference(task, v, reference) for v in ("flat", "recompute")}
    differences["stream"] = relative_difference(task, "stream", reference)
    value = task.loop(task.support)
    wrt = [task.z, task.w, *task.decoder.parameters(), *task.likelihood.parameters()]
    sparse = (value, *torch.autograd.grad(value.sum(), wrt))
    differences["single"] = relative_difference(task, "single", sparse)
    rounded = relative_difference(task, "bfloat16", reference)
    shown = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
    print(f"  relative difference from the loop: {shown}; bfloat16 {rounded:.1e}")
    if max(differences.values()) > TOLERANCE:
        raise SystemExit(f"a variant differs from the loop by more than {TOLERANCE}")


def race(task, rounds, clock):
    square, out = torch.randn(2048, 2048), torch.empty(2048, 2048)
    names = ["loop", "flat", "recompute", "stream", "single", "bfloat16"]
    runs = {name: (lambda name=name: task.step(name)) for name in names}
    runs["product"] = lambda: torch.mm(square, square, out=out)
    seconds = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            start = clock()
            run()
            if turn:
                seconds[name].append(clock() - start)
    return seconds


def report(task, seconds):
    def ratio(a, b):
        return statistics.median(x / y for x, y in zip(seconds[a], seconds[b], strict=True))

    product = 2 * 2048**3
    for name in ("loop", "flat", "recompute", "stream", "single", "bfloat16"):
        share = task.flops / product * ratio("product", name)
        print(
            f"  {name:10s} {statistics.median(seconds[name]):7.3f} s   "
            f"{ratio('loop', name):5.2f} x the loop   {share:5.1%} of the product's rate"
        )
    print(f"  60 % single-factor features: {ratio('stream', 'single'):.2f} x the dense stream")
    peak = product / statistics.median(seconds["product"]) / 1e9
    print(f"  matrix product n=2048: {peak:.0f} GFLOP/s")


def peak_memory(size, variant):
    """Growth of the peak resident size during one step, in MiB; runs in a fresh process."""
    Task(4, 8, *size[2:]).step(variant)  # load libraries
    task = Task(*size)
    before = resident_peak()
    task.step(variant)
    return (resident_peak() - before) / 1024


def resident_peak():
    """Peak resident size of this program in KiB (getrusage would include the parent's)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def memory_in_fresh_process(name, variant, threads):
    options = ["--threads", str(threads), "--memory-of", name, variant]
    command = [sys.executable, __file__, *options]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-of", nargs=2, metavar=("SIZE", "VARIANT"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pyro.enable_validation(False)
    if options.memory_of:
        name, variant = options.memory_of
        print(peak_memory(SIZES[name], variant))
        return
    clock = time.process_time if options.threads == 1 else time.perf_counter
    kind = "CPU" if options.threads == 1 else "wall"
    for name, size in SIZES.items():
        task = Task(*size)
        print(f"{name}, {options.threads} threads, {kind} time, {options.rounds} rounds")
        check(task)
        report(task, race(task, options.rounds, clock))
        variants = ("loop", "flat", "recompute", "stream")
        memory = {v: memory_in_fresh_process(name, v, options.threads) for v in variants}
        shown = ", ".join(f"{v} {mib:.0f}" for v, mib in memory.items())
        print(f"  peak extra memory in MiB: {shown}")
        print(f"  stream / flat: 1 / {memory['flat'] / memory['stream']:.0f}", flush=True)


if __name__ == "__main__":
    main()
