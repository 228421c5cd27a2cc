"""Recovery of shared and specific factors on the nonlinear simulation of three studies, ablated.

    python benchmarks/multistudy_simulation.py --seeds 0 1 2 --out docs/studies/multistudy.csv

Every data set: ``simulate.multistudy``, 3 x 200 observations, 54 features, three shared factors
and one of each study. Variants differ from the default in one thing. Rows are written as they
come; those already in the file are not run again. The truth is used for scoring only.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from probinterp import simulate
from probinterp.inference import (
    ArrayData,
    fit,
    full_objective,
    late_cosine,
    mend_blocks,
    mend_codes,
    posterior,
)
from probinterp.inference.stability import refitting, stability
from probinterp.likelihoods import NegativeBinomialLikelihood
from probinterp.models import MultiStudySparseVAE, ProbabilisticModel, SparseVAE
from probinterp.models.spike_slab_loadings import ACTIVE_LOADING, active_loadings
from probinterp.recovery import (
    SHARED,
    block_accuracy,
    double_coded,
    matched_correlation,
    support_scores,
    support_scores_by_block,
)
from probinterp.simulate import MultiStudyTruth

N_STUDIES, N_SHARED, N_SPECIFIC, N_HIDDEN = 3, 6, 2, 50
SPIKE, SLAB, NO_PENALTY = 300.0, 10.0, 1e-3
N_REFITS, N_RESTARTS = 4, 3
NOTHING = 0.5  # |correlation| below which a found column follows no true factor
RECIPE: dict[str, Any] = {
    "max_epochs": 300,
    "batch_size": 100,
    "schedule": late_cosine,
    "optimizer": partial(torch.optim.Adam, lr=1e-2),
    "progress": False,
}
SCALES = (1.0, 2.0, 4.0)  # of both rates, for counts


class Run(NamedTuple):
    """A fitted model, the columns of it that count, and the time since the start."""

    model: Any
    kept: Tensor
    seconds: float


def gated(n_features: int, **options: Any) -> MultiStudySparseVAE:
    settings = {"n_hidden": N_HIDDEN, "spike": SPIKE, "slab": SLAB, "kl_warmup": 0.2} | options
    return MultiStudySparseVAE(n_features, N_SHARED, N_SPECIFIC, N_STUDIES, **settings)


def pooled(n_features: int) -> SparseVAE:
    """One block for everything, with as many columns in all."""
    return SparseVAE(
        n_features,
        N_SHARED + N_STUDIES * N_SPECIFIC,
        n_hidden=N_HIDDEN,
        spike=SPIKE,
        slab=SLAB,
        start="components",
    )


def fitted(
    make: Callable[[int], ProbabilisticModel], data: ArrayData, seed: int, restart: int = 0
) -> ProbabilisticModel:
    torch.manual_seed(100 * seed + restart)
    model = make(data.x.shape[1])
    fit(model, data, seed=restart, **RECIPE)
    return model


def support(model: Any) -> Tensor:
    """Which features each column reaches; without a penalty, by size alone."""
    if float(model.sparse.spike) < 1:
        return model.loadings.detach().abs() > ACTIVE_LOADING
    return active_loadings(model.loadings.detach(), model.inclusion_probability)


def everything(model: Any) -> Tensor:
    return support(model).any(0)


def mended(model: Any, data: ArrayData) -> Any:
    """Blocks first, then codes."""
    return mend_codes(mend_blocks(model, data, **RECIPE).model, data, **RECIPE).model


def screened(model: Any, data: ArrayData, seed: int) -> Tensor:
    """Columns that come back, in their block, in mended refits to 80 % of every study."""
    again = refitting(partial(gated, data.x.shape[1]), mended, **RECIPE)
    seeds = range(1000 * (seed + 1), 1000 * (seed + 1) + N_REFITS)
    found = stability(again, data, model, seeds=seeds)
    kept = torch.zeros(len(model.block), dtype=torch.bool)
    kept[found.reference.columns[found.stable()]] = True
    return kept


def runs(data: ArrayData, seed: int, screen: bool) -> Iterator[tuple[str, Run]]:
    """All variants on one data set. Those that share a fit count its time."""
    started = time.perf_counter()
    first = fitted(gated, data, seed)
    yield "default", Run(first, everything(first), time.perf_counter() - started)
    codes = mended(first, data)
    yield "default + mending", Run(codes, everything(codes), time.perf_counter() - started)
    if screen:
        kept = screened(codes, data, seed)
        yield "default + mending + screen", Run(codes, kept, time.perf_counter() - started)

    started = time.perf_counter()
    random = partial(gated, start="random")
    fits = [fitted(random, data, seed)]
    once = time.perf_counter() - started
    yield "random start", Run(fits[0], everything(fits[0]), once)

    started = time.perf_counter()
    moved = mend_blocks(fits[0], data, **RECIPE).model
    seconds = once + time.perf_counter() - started
    yield "random start + block mending", Run(moved, everything(moved), seconds)
    codes = mended(fits[0], data)
    seconds = once + time.perf_counter() - started
    yield "random start + mending", Run(codes, everything(codes), seconds)

    started = time.perf_counter()
    fits += [fitted(random, data, seed, restart) for restart in range(1, N_RESTARTS)]
    best = max(fits, key=lambda model: full_objective(model, data))
    seconds = once + time.perf_counter() - started
    yield "random start, best of 3", Run(best, everything(best), seconds)

    variants = {
        "no penalty": partial(gated, spike=1.01 * NO_PENALTY, slab=NO_PENALTY),
        "no gate": pooled,
    }
    for name, make in variants.items():
        started = time.perf_counter()
        model = fitted(make, data, seed)
        yield name, Run(model, everything(model), time.perf_counter() - started)


def count_runs(data: ArrayData, seed: int) -> Iterator[tuple[str, Run]]:
    """The default on counts, at several sizes of the penalty."""
    for scale in SCALES:
        likelihood = NegativeBinomialLikelihood(data.x.shape[1], standardize=True)
        make = partial(gated, spike=scale * SPIKE, slab=scale * SLAB, likelihood=likelihood)
        started = time.perf_counter()
        model = fitted(make, data, seed)
        yield f"counts, x {scale:g}", Run(model, everything(model), time.perf_counter() - started)
        if scale == 1:
            codes = mended(model, data)
            seconds = time.perf_counter() - started
            yield "counts, x 1 + mending", Run(codes, everything(codes), seconds)


@torch.no_grad()
def scores(run: Run, data: ArrayData, truth: MultiStudyTruth) -> dict[str, Any]:
    """What a run found, over the columns that count."""
    model, kept = run.model, run.kept
    z = posterior(model, data.batch())["z"].mean[:, kept]
    block = model.block[kept] if hasattr(model, "block") else torch.full((z.shape[1],), SHARED)
    found = support(model)[:, kept]
    r = matched_correlation(z, truth.z, block, truth.block, truth.study)
    shared, own = r.block == SHARED, r.block != SHARED
    by_block = support_scores_by_block(found, truth.support, block, truth.block)
    return {
        "shared_min": r.shared[shared].min().item(),
        "shared_mean": r.shared[shared].mean().item(),
        "shared_95": int((r.shared[shared] >= 0.95).sum()),
        "shared_85": int((r.shared[shared] >= 0.85).sum()),
        "specific_right": round(block_accuracy(r) * N_STUDIES),
        "specific_own": r.specific[own].mean().item(),
        "specific_in_shared": r.shared[own].mean().item(),
        "double_coded": int(double_coded(r).sum()),
        "false_specific": false_specific(z, block, truth),
        "columns_shared": int((block == SHARED).sum()),
        "columns_specific": int((block != SHARED).sum()),
        "loadings": int(found.sum()),
        "consensus_shared": by_block[SHARED].consensus,
        **{f"consensus_{m}": by_block[m].consensus for m in range(N_STUDIES)},
        "consensus_any": support_scores(found, truth.support).consensus,
        "objective": full_objective(model, data),
        "seconds": run.seconds,
    }


def false_specific(z: Tensor, block: Tensor, truth: MultiStudyTruth) -> int:
    """Number of specific columns that follow no true factor within their study."""
    count = 0
    for k in (block != SHARED).nonzero().flatten().tolist():
        rows = truth.study == block[k]
        pair = torch.cat([z[rows][:, [k]], truth.z[rows][:, truth.gate[block[k]]]], dim=1)
        count += bool(torch.corrcoef(pair.mT.double())[0, 1:].abs().max() < NOTHING)
    return count


def is_counts(row: dict[str, Any]) -> bool:
    return row["variant"].startswith("counts")


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """One row a variant: means over data sets, and the worst case of the smallest |r|."""
    own = [f"consensus_{m}" for m in range(N_STUDIES)]
    table = table.assign(consensus_specific=table[own].fillna(0).mean(1))
    grouped = table.groupby("variant", sort=False)
    means = grouped[
        [
            "shared_mean",
            "shared_95",
            "shared_85",
            "specific_right",
            "specific_own",
            "double_coded",
            "false_specific",
            "columns_shared",
            "columns_specific",
            "consensus_shared",
            "consensus_specific",
            "consensus_any",
            "objective",
            "seconds",
        ]
    ].mean()
    means.insert(0, "shared_min", grouped["shared_min"].min())
    means.insert(0, "sets", grouped.size())
    return means.round(3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="*", default=list(range(10)))
    parser.add_argument("--screen", type=int, nargs="*", default=[0, 1], help="seeds with a screen")
    parser.add_argument("--counts", type=int, nargs="*", default=[], help="seeds with counts")
    parser.add_argument("--default-only", action="store_true", help="leave the variants out")
    parser.add_argument("--out", type=Path, help="CSV file with one row a run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    done = pd.read_csv(options.out) if options.out and options.out.exists() else pd.DataFrame()
    rows = done.to_dict("records")
    tasks = [(seed, "gaussian") for seed in options.seeds]
    tasks += [(seed, "negative_binomial") for seed in options.counts]
    for seed, likelihood in tasks:
        counts = likelihood != "gaussian"
        last = f"counts, x {SCALES[-1]:g}" if counts else "no gate"
        last = "default + mending" if options.default_only else last
        here = [row for row in rows if (row["seed"], is_counts(row)) == (seed, counts)]
        if any(row["variant"] == last for row in here):
            continue
        rows = [row for row in rows if row not in here]  # stopped halfway
        truth = simulate.multistudy(likelihood=likelihood, seed=seed)
        data = ArrayData(truth.x, size_factor=truth.size_factor, study=truth.study)
        found = count_runs(data, seed) if counts else runs(data, seed, seed in options.screen)
        found = islice(found, 2) if options.default_only else found
        for variant, run in found:
            row = {"variant": variant, "seed": seed} | scores(run, data, truth)
            rows.append(row)
            print(
                pd.DataFrame([row]).round(3).to_csv(header=False, index=False).strip(), flush=True
            )
            if options.out:
                pd.DataFrame(rows).round(4).to_csv(options.out, index=False)
    with pd.option_context("display.width", 250, "display.max_columns", 30):
        print(summary(pd.DataFrame(rows)).to_string())


if __name__ == "__main__":
    main()
