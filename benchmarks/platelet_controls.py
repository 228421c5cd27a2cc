"""Platelet RNA with the labels that were deposited, and with labels that mean nothing.

    python benchmarks/platelet_controls.py --out docs/studies/platelets.csv

The whole job of ``probinterp demo platelets`` runs three times on the same counts: with the
deposited labels, with diseases permuted within batches, and with batches permuted over all samples.
Whatever a permuted label explains, stable specific factors, differences between diseases or factors
set aside for their batch, is false. The last lines compare held-out densities with the deposited
labels. Needs the public series, see ``PROBINTERP_DATA``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from probinterp.genomics.contrasts import DIFFERENCE
from probinterp.genomics.stratified_ranks import permuted_within
from probinterp.jobs.platelet_cohort import BATCH, DISEASE, Cohort, gene_sets_in, read_cohort
from probinterp.jobs.platelet_models import N_SHARED, Training, fit_cohort
from probinterp.jobs.platelet_tables import (
    BATCH_ONLY,
    EVERYONE,
    FINDING,
    UNSTABLE,
    platelet_tables,
)


def with_labels(cohort: Cohort, labels: str, seed: int) -> Cohort:
    """The cohort with one of its columns permuted."""
    adata = cohort.adata.copy()
    random = np.random.default_rng(seed)
    if labels == "batches permuted":
        adata.obs[BATCH] = pd.Categorical(random.permutation(adata.obs[BATCH].astype(str)))
    if labels == "diseases permuted within batches":
        disease = permuted_within(adata.obs[DISEASE].astype(str), adata.obs[BATCH], random)
        adata.obs[DISEASE] = pd.Categorical(disease)
    return cohort._replace(adata=adata)


def study(cohort: Cohort, labels: str, training: Training, n_refits: int) -> pd.DataFrame:
    started = time.perf_counter()
    shown = with_labels(cohort, labels, training.seed)
    result = fit_cohort(shown, training, n_refits)
    tables = platelet_tables(shown, result, gene_sets_in(None))
    recovered = result.stability
    names = recovered.reference.named(result.fitted.train.study_names)
    came_back = dict(zip(names, recovered.recovered.tolist(), strict=True))
    found = tables.contrasts
    different = found[found["status"] == DIFFERENCE] if len(found) else found
    kept = tables.with_status(FINDING)
    overall = tables.heldout[tables.heldout["group"] == EVERYONE].set_index("model")
    row = {
        "labels": labels,
        "seed": training.seed,
        "refits": n_refits,
        "shared": sum(name.startswith("shared") for name in names),
        "specific": sum(not name.startswith("shared") for name in names),
        "specific_removed": len(result.mending.removed),
        "specific_stable": sum(
            came_back[name] >= 0.8 for name in names if not name.startswith("shared")
        ),
        "stable": " ".join(kept),
        "batch_only": " ".join(tables.with_status(BATCH_ONLY)),
        "unstable": " ".join(tables.with_status(UNSTABLE)),
        "stability": " ".join(f"{name}:{value:.1f}" for name, value in came_back.items()),
        "differences": len(different),
        "differences_of_stable": int(different["factor"].isin(kept).sum()) if len(found) else 0,
        "tests": len(found),
        "seconds": time.perf_counter() - started,
    }
    for model in overall.index[1:]:
        row[f"vs {model}"] = overall.loc[model, "difference"]
        row[f"vs {model}, s.e."] = overall.loc[model, "standard error"]
    print(pd.Series(row).to_string(), flush=True)
    return pd.DataFrame([row])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--refits", type=int, default=10, help="with the deposited labels")
    parser.add_argument("--control-refits", type=int, default=5, help="with permuted labels")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--labels", nargs="*", default=LABELS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    cohort = read_cohort()
    if cohort.synthetic:
        raise SystemExit("The public series was not found: set PROBINTERP_DATA.")
    training = Training(options.epochs, options.seed, "auto", False, N_SHARED)
    tables = []
    for labels in options.labels:
        n_refits = options.refits if labels == DEPOSITED else options.control_refits
        tables.append(study(cohort, labels, training, n_refits))
        if options.out:
            pd.concat(tables).round(3).to_csv(options.out, index=False)


DEPOSITED = "deposited"
LABELS = [DEPOSITED, "diseases permuted within batches", "batches permuted"]

if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
