"""One step of ``fit`` against a hand-written PyTorch loop of the same model on the same data.

    python benchmarks/svi_overhead.py

CPU time of one thread, variants interleaved, median of the ratios; the losses must agree first.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import pyro
import torch
from torch import Tensor

from probinterp.inference import MeanFieldELBO
from probinterp.likelihoods import GaussianLikelihood, NegativeBinomialLikelihood
from probinterp.models import VAE, Batch, ProbabilisticModel, SparseVAE


def normal_kl(q: torch.distributions.Distribution) -> Tensor:
    mean, scale = q.mean, q.variance.sqrt()
    return 0.5 * (mean.square() + scale.square() - 1 - 2 * scale.log()).sum()


def by_hand(model: ProbabilisticModel, batch: Batch, n_total: int) -> Tensor:
    """The negative ELBO of a VAE or sparse VAE written out, without Pyro."""
    q = model.encoder(model.likelihood.encoder_input(batch))
    z = q.rsample()
    scale = n_total / len(batch.x)
    if isinstance(model, VAE):
        law, prior = model.likelihood(model.decode(z), batch), 0.0
    else:
        law = model.decoder.observe(z, model.loadings, model.likelihood, batch)
        size, rate = model.loadings.abs(), model.inclusion_rate
        slab = rate.log() + (model.slab / 2).log() - model.slab * size
        spike = torch.log1p(-rate) + (model.spike / 2).log() - model.spike * size
        beta = torch.distributions.Beta(torch.ones_like(rate), len(size) * torch.ones_like(rate))
        prior = torch.logaddexp(slab, spike).sum() + beta.log_prob(rate).sum()
        noise = model.likelihood.log_prior()
        prior = prior if noise is None else prior + noise
    return -scale * (law.log_prob(batch.x).sum() - normal_kl(q)) - prior


def with_pyro(model: ProbabilisticModel, batch: Batch, n_total: int) -> Tensor:
    return MeanFieldELBO().differentiable_loss(model.model, model.guide, batch, n_total)


def step(
    loss: Callable[[ProbabilisticModel, Batch, int], Tensor],
    model: ProbabilisticModel,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
) -> float:
    started = time.process_time()
    optimizer.zero_grad(set_to_none=True)
    loss(model, batch, 10 * len(batch.x)).backward()
    optimizer.step()
    return time.process_time() - started


def race(name: str, make: Callable[[], ProbabilisticModel], batch: Batch, rounds: int) -> None:
    torch.manual_seed(0)
    model = make()
    model.initialize(batch, 10 * len(batch.x))
    losses = []
    for loss in (by_hand, with_pyro):
        torch.manual_seed(1)
        losses.append(loss(model, batch, 10 * len(batch.x)).item())
    if abs(losses[0] - losses[1]) > 2e-5 * abs(losses[0]):
        raise SystemExit(f"{name}: the losses differ, {losses[0]} and {losses[1]}")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    ratios, times = [], []
    for number in range(rounds + 3):
        hand = step(by_hand, model, optimizer, batch)
        ours = step(with_pyro, model, optimizer, batch)
        if number >= 3:
            ratios.append(ours / hand)
            times.append(ours)
    print(f"{name:<34} {1e3 * statistics.median(times):8.1f} ms  {statistics.median(ratios):.3f} x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    n, g = 512, 2000
    counts = torch.poisson(torch.rand(n, g).square() * 0.15)
    size_factor = torch.ones(n)
    density = (counts > 0).float().mean().item()
    gaussian = Batch(torch.randn(n, g))
    count_batch = Batch(counts, size_factor=size_factor)
    print(f"B={n}, G={g}; counts {density:.1%} non-zero; SVI step over the loop written by hand")
    with pyro.validation_enabled(False):
        race("VAE, Gaussian", lambda: VAE(g, 20), gaussian, rounds)
        race(
            "VAE, negative binomial",
            lambda: VAE(g, 20, likelihood=NegativeBinomialLikelihood(g)),
            count_batch,
            rounds,
        )
        race(
            "sparse VAE, Gaussian, K=15, H=64",
            lambda: SparseVAE(
                g, 15, n_hidden=64, likelihood=GaussianLikelihood(g), spike=500.0, slab=30.0
            ),
            gaussian,
            max(3, rounds // 3),
        )


if __name__ == "__main__":
    main()
