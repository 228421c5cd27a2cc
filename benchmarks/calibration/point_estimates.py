"""Point-estimated globals: what repairs the false alarms, and what it costs.

Factor analysis by maximum likelihood, G = 20 features, K = 2 factors, 79 free parameters, correct
model. Discrepancy: mean negative marginal log likelihood, whose replicates at one estimate are
known exactly: their sum over rows is half a chi-square variable with n G degrees of freedom.
Fits are by expectation maximisation on means and covariances, all data sets at a time.
Expected at n_obs = n_new: a single estimate rejects .45 of the correct models, an ensemble of
estimates a quarter, refits to simulated data .05.

    python benchmarks/calibration/point_estimates.py --sets 1000 --out point_estimates.csv
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from scipy.stats import chi2, kstest
from study import arguments, report
from torch import Tensor

from probinterp.criticism.refit_p import refit_rank_p, refit_t_p

N_FEATURES, N_FACTORS = 20, 2
DIM = N_FEATURES * (N_FACTORS + 2) - N_FACTORS * (N_FACTORS - 1) // 2
N_REFITS, N_BOOTSTRAP, ITERATIONS = 79, 30, 150
SIZES = ((200, 200), (200, 20), (1000, 200))


class Moments(NamedTuple):
    """Mean (..., G) and covariance (..., G, G; divisor n) of data sets."""

    mean: Tensor
    covariance: Tensor


class Parameters(NamedTuple):
    """Factor models: intercept (..., G), loadings (..., G, K), noise variance (..., G)."""

    intercept: Tensor
    loadings: Tensor
    noise: Tensor

    @property
    def total(self) -> Tensor:
        """Covariance of the features."""
        return self.loadings @ self.loadings.mT + torch.diag_embed(self.noise)

    def repeated(self, n: int) -> Parameters:
        """With a new dimension of size n behind the first."""
        return Parameters(*(p.unsqueeze(1).repeat_interleave(n, 1) for p in self))


def simulate(theta: Parameters, n: int) -> Moments:
    """Moments of n rows from each model: a normal mean and, by Bartlett, a Wishart covariance."""
    root = torch.linalg.cholesky(theta.total)
    degrees = n - 1 - torch.arange(N_FEATURES, dtype=root.dtype)
    lower = torch.randn_like(root).tril(-1)
    diagonal = (2 * torch._standard_gamma((degrees / 2).expand_as(theta.noise))).sqrt()
    factor = root @ (lower + torch.diag_embed(diagonal)) / math.sqrt(n)
    step = (root @ torch.randn_like(theta.noise).unsqueeze(-1)).squeeze(-1)
    return Moments(theta.intercept + step / math.sqrt(n), factor @ factor.mT)


def fit(data: Moments, n_iterations: int, start: Parameters | None = None) -> Parameters:
    """Maximum likelihood by expectation maximisation, from principal components or ``start``."""
    covariance = data.covariance
    if start is None:
        values, vectors = torch.linalg.eigh(covariance)
        rest = values[..., :-N_FACTORS].mean(-1, keepdim=True)
        large = (values[..., -N_FACTORS:] - rest).clamp_min(1e-3).sqrt()
        loadings = vectors[..., -N_FACTORS:] * large.unsqueeze(-2)
        variances = covariance.diagonal(dim1=-2, dim2=-1)
        noise = (variances - loadings.square().sum(-1)).clamp_min(0.1 * variances)
    else:
        loadings, noise = start.loadings, start.noise
    identity = torch.eye(N_FACTORS, dtype=noise.dtype)
    for _ in range(n_iterations):
        weighted = loadings / noise.unsqueeze(-1)
        inner = torch.linalg.inv(identity + loadings.mT @ weighted)
        cross = covariance @ (weighted @ inner)  # E[x z]
        second = inner + inner @ weighted.mT @ cross
        loadings = cross @ torch.linalg.inv(second)
        noise = covariance.diagonal(dim1=-2, dim2=-1) - (loadings * cross).sum(-1)
        noise = noise.clamp_min(1e-4)
    return Parameters(data.mean, loadings, noise)


def excess(theta: Parameters, new: Moments) -> Tensor:
    """Discrepancy of the new data less its mean over replicates of theta, exactly."""
    shift = (new.mean - theta.intercept).unsqueeze(-1)
    second = new.covariance + shift @ shift.mT
    return 0.5 * (torch.linalg.solve(theta.total, second).diagonal(dim1=-2, dim2=-1) - 1).sum(-1)


def tangents(theta: Parameters) -> Tensor:
    """Derivatives of the covariance by loadings and log noise, whitened, (D, P, G G)."""
    n_sets, eye = len(theta.noise), torch.eye(N_FEATURES, dtype=theta.noise.dtype)
    half = torch.einsum("gh,dak->dgkha", eye, theta.loadings)
    by_loadings = (half + half.mT).reshape(n_sets, -1, N_FEATURES, N_FEATURES)
    by_noise = torch.diag_embed(eye * theta.noise.unsqueeze(1))
    derivative = torch.cat([by_loadings, by_noise], 1)
    root = torch.linalg.cholesky(theta.total).unsqueeze(1)
    left = torch.linalg.solve_triangular(root, derivative, upper=False)
    return torch.linalg.solve_triangular(root, left.mT, upper=False).flatten(2)


def information(theta: Parameters) -> tuple[Tensor, Tensor]:
    """Tangents and pseudo-inverse of the information of a row."""
    tangent = tangents(theta)
    return tangent, torch.linalg.pinv(0.5 * tangent @ tangent.mT, rtol=1e-8, hermitian=True)


def moved(theta: Parameters, step: Tensor, intercept: Tensor) -> Parameters:
    """Parameters after ``step`` (D, B, P) in loadings and log noise."""
    n_loadings = N_FEATURES * N_FACTORS
    loadings = theta.loadings.unsqueeze(1) + step[..., :n_loadings].unflatten(-1, (N_FEATURES, -1))
    noise = theta.noise.unsqueeze(1) * step[..., n_loadings:].exp()
    return Parameters(intercept, loadings, noise)


def one_step(theta: Parameters, data: Moments) -> Parameters:
    """Refits (D, B) by a single step of Fisher's scoring from theta."""
    tangent, inverse = information(theta)
    root = torch.linalg.cholesky(theta.total).unsqueeze(1)
    left = torch.linalg.solve_triangular(root, data.covariance, upper=False)
    white = torch.linalg.solve_triangular(root, left.mT, upper=False)
    residual = (white - torch.eye(N_FEATURES, dtype=white.dtype)).flatten(2)
    score = 0.5 * residual @ tangent.mT
    return moved(theta, score @ inverse, data.mean)


def laplace(theta: Parameters, n_obs: int, n_draws: int) -> Parameters:
    """Draws (D, S) from the normal approximation around theta."""
    _, inverse = information(theta)
    values, vectors = torch.linalg.eigh(inverse)
    root = vectors * values.clamp_min(0).sqrt().unsqueeze(-2)
    noise = torch.randn(len(root), n_draws, root.shape[-1], dtype=root.dtype)
    factor = torch.linalg.cholesky(theta.total)
    mean = torch.randn(len(root), n_draws, N_FEATURES, dtype=root.dtype) @ factor.mT
    intercept = theta.intercept.unsqueeze(1) + mean / math.sqrt(n_obs)
    return moved(theta, noise @ root.mT / math.sqrt(n_obs), intercept)


def replicate_p(theta: Parameters, members: Parameters, t: Tensor, n_new: int, seed: int) -> Tensor:
    """Two-sided p of t among replicates of the members, d at theta."""
    at = theta.repeated(members.noise.shape[1])
    replicated = excess(at, simulate(members, n_new)).mT
    uniform = torch.rand(len(t), generator=torch.Generator().manual_seed(seed), dtype=t.dtype)
    return refit_rank_p(replicated, t, uniform)


def normal_p(z: Tensor) -> Tensor:
    """Two-sided p of a standard normal variable."""
    return 2 * torch.special.ndtr(-z.abs())


def chi_square_p(t: Tensor, n_new: int) -> Tensor:
    """Two-sided p of the excess among replicates of the estimate itself, exactly."""
    degrees = n_new * N_FEATURES
    upper = torch.as_tensor(chi2.sf((degrees + 2 * n_new * t).numpy(), degrees))
    return 2 * torch.minimum(upper, 1 - upper)


class Case(NamedTuple):
    """Data sets of one size and the fits to them."""

    n_obs: int
    n_new: int
    rows: Tensor  # (D, n_obs, G)
    estimate: Parameters
    excess: Tensor
    uniform: Tensor


def make_case(n_sets: int, n_obs: int, n_new: int) -> Case:
    loadings = torch.randn(n_sets, N_FEATURES, N_FACTORS, dtype=torch.float64)
    noise = 0.5 + torch.rand(n_sets, N_FEATURES, dtype=torch.float64)
    truth = Parameters(torch.zeros_like(noise), loadings, noise)
    root = torch.linalg.cholesky(truth.total)
    rows = torch.randn(n_sets, n_obs, N_FEATURES, dtype=torch.float64) @ root.mT
    centred = rows - rows.mean(1, keepdim=True)
    data = Moments(rows.mean(1), centred.mT @ centred / n_obs)
    estimate = fit(data, 2 * ITERATIONS)
    t = excess(estimate, simulate(truth, n_new))
    return Case(n_obs, n_new, rows, estimate, t, torch.rand_like(t))


def bootstrapped(case: Case) -> Parameters:
    n_sets, n_obs, _ = case.rows.shape
    index = torch.randint(n_obs, (n_sets, N_BOOTSTRAP, n_obs))
    weight = torch.zeros(n_sets, N_BOOTSTRAP, n_obs, dtype=torch.float64)
    weight.scatter_add_(2, index, torch.full_like(weight, 1 / n_obs))
    mean = weight @ case.rows
    square = (case.rows.unsqueeze(-1) * case.rows.unsqueeze(-2)).flatten(2)
    second = (weight @ square).unflatten(-1, (N_FEATURES, N_FEATURES))
    return fit(Moments(mean, second - mean.unsqueeze(-1) * mean.unsqueeze(-2)), ITERATIONS)


Refit = Callable[[Moments, Parameters], Parameters]


def refitted(case: Case, refit: Refit, n_refits: int) -> Tensor:
    """Excesses of refits to data that the estimates simulate, (B, D)."""
    many = case.estimate.repeated(n_refits)
    again = refit(simulate(many, case.n_obs), many)
    return excess(again, simulate(many, case.n_new)).mT


def p_values(case: Case) -> Iterator[tuple[str, float, float, Tensor]]:
    """Name, cost in fits, seconds a data set and p-values of every method."""
    n_obs, n_new, t = case.n_obs, case.n_new, case.excess
    spread = math.sqrt(N_FEATURES / (2 * n_new))
    bias = DIM / n_obs * math.sqrt(2 * n_new / N_FEATURES)
    inflation = math.sqrt(1 + n_new / n_obs)
    yield "point estimate", 0, 0.0, chi_square_p(t, n_new)
    yield "analytic correction", 0, 0.0, normal_p((t / spread - bias) / inflation)
    for name, members, fits in (
        ("bootstrap ensemble", lambda: bootstrapped(case), N_BOOTSTRAP),
        ("laplace", lambda: laplace(case.estimate, n_obs, 300), 0),
    ):
        started = time.perf_counter()
        found = members()
        if name.startswith("bootstrap"):
            found = Parameters(*(part.repeat_interleave(10, 1) for part in found))
        p = replicate_p(case.estimate, found, t, n_new, 1)
        seconds = (time.perf_counter() - started) / len(t)
        yield name, fits, seconds, p
    yield from refit_methods(case)


def refit_methods(case: Case) -> Iterator[tuple[str, float, float, Tensor]]:
    """Refits from principal components, from the estimate, or by one scoring step."""
    refits: dict[str, tuple[Refit, float]] = {
        "refits": (lambda data, _: fit(data, ITERATIONS), 1.0),
        "warm refits, 20 iterations": (lambda data, at: fit(data, 20, at), 20 / ITERATIONS),
        "warm refits, 5 iterations": (lambda data, at: fit(data, 5, at), 5 / ITERATIONS),
        "one-step refits": (lambda data, _: one_step(case.estimate, data), 0.0),
    }
    for name, (refit, cost) in refits.items():
        started = time.perf_counter()
        found = refitted(case, refit, N_REFITS)
        seconds = (time.perf_counter() - started) / len(case.excess) / N_REFITS
        for n in (39, N_REFITS):
            p = refit_rank_p(found[:n], case.excess, case.uniform)
            yield f"{name}, rank of {n}", cost * n, seconds * n, p
        for n in (5, 10, 20):
            yield f"{name}, t of {n}", cost * n, seconds * n, refit_t_p(found[:n], case.excess)


def summary(p: Tensor) -> dict[str, float]:
    rejected = (p <= 0.05).double().mean().item()
    return {
        "rej5": rejected,
        "se": math.sqrt(max(rejected * (1 - rejected), 1e-12) / len(p)),
        "ks": float(kstest(p.numpy(), "uniform").statistic),
        "mean_p": p.mean().item(),
    }


def main() -> None:
    options = arguments(__doc__, n_sets=1000, n_draws=300)
    torch.manual_seed(options.seed)
    gathered: dict[tuple[int, int, str], list] = {}
    for n_obs, n_new in SIZES:
        for part in torch.arange(options.sets).split(100):
            case = make_case(len(part), n_obs, n_new)
            for name, fits, seconds, p in p_values(case):
                gathered.setdefault((n_obs, n_new, name), []).append((fits, seconds, p))
    rows = []
    for (n_obs, n_new, name), found in gathered.items():
        p = torch.cat([one[2] for one in found])
        seconds = sum(one[1] for one in found) / len(found)
        start = {"n_obs": n_obs, "n_new": n_new, "method": name, "sets": len(p)}
        cost = {"fits": float(found[0][0]), "ms_a_set": 1e3 * seconds}
        rows.append(start | cost | summary(p))
    report(rows, options.out)


if __name__ == "__main__":
    main()
