"""Race the negative binomial log likelihood against torch's, at several densities of counts.

One step is the log likelihood of a 512 x 2000 batch and its gradients by the log mean and the
inverse dispersion. Variants run in turn on one thread, timed in CPU time; the ratio is the median
over the rounds. Errors are relative, in norm, to the same computation in double precision.

    OMP_NUM_THREADS=1 python benchmarks/negative_binomial.py
"""

import argparse
import statistics
import time

import torch
from torch.distributions import NegativeBinomial as TorchNegativeBinomial

from probinterp.counts import NegativeBinomial

N_OBS, N_FEATURES = 512, 2000
DENSITIES = (0.02, 0.05, 0.1, 0.28)
TOLERANCE = 1e-5


def ours(log_mean, log_r, x):
    return NegativeBinomial(log_mean, log_r.exp(), validate_args=False).log_prob(x)


def torchs(log_mean, log_r, x):
    logits = log_mean - log_r
    dense = TorchNegativeBinomial(log_r.exp(), logits=logits, validate_args=False)
    return dense.log_prob(x).sum(-1)


def step(log_prob, log_mean, log_r, x):
    value = log_prob(log_mean, log_r, x)
    return value, *torch.autograd.grad(value.sum(), (log_mean, log_r))


def simulate(density):
    mean = -torch.log1p(-torch.tensor(density))
    log_mean = mean.log() + 0.5 * torch.randn(N_OBS, N_FEATURES)
    log_r = 1 + torch.randn(N_FEATURES)
    x = NegativeBinomial(log_mean, log_r.exp()).sample()
    return log_mean.requires_grad_(), log_r.requires_grad_(), x


def relative_errors(log_prob, tensors):
    exact = [tensor.detach().double() for tensor in tensors]
    reference = step(torchs, exact[0].requires_grad_(), exact[1].requires_grad_(), exact[2])
    pairs = zip(step(log_prob, *tensors), reference, strict=True)
    return [((a - b).norm() / b.norm()).item() for a, b in pairs]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("non-zero   ours [ms]   torch [ms]   ratio   relative error of value, d mean, d r")
    for density in DENSITIES:
        tensors = simulate(density)
        errors = relative_errors(ours, tensors)
        if max(errors) > TOLERANCE:
            raise SystemExit(f"relative error {max(errors):.1e}, more than {TOLERANCE}")
        seconds = {ours: [], torchs: []}
        for turn in range(options.rounds + 1):
            for log_prob, times in seconds.items():
                start = time.process_time()
                step(log_prob, *tensors)
                if turn:
                    times.append(time.process_time() - start)
        ratio = statistics.median(b / a for a, b in zip(*seconds.values(), strict=True))
        fast, slow = (1e3 * statistics.median(times) for times in seconds.values())
        share = (tensors[2] > 0).float().mean().item()
        shown = "  ".join(f"{error:.1e}" for error in errors)
        print(f"{share:8.1%}   {fast:9.2f}   {slow:10.2f}   {ratio:5.2f}   {shown}", flush=True)


if __name__ == "__main__":
    main()
