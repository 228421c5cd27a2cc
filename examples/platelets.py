"""Platelet RNA of several diseases: shared and specific factors, and which of them to believe.

Diseases are the studies, technical batches a nuisance. With a path this reads the public series
GSE68086; without one it simulates counts of the same kind, which say nothing about disease.

    python examples/platelets.py --path ../shared/data/tep_gse68086 --out platelets
"""

import argparse
from functools import partial
from pathlib import Path

import anndata
import pandas as pd
import torch

from probinterp import genomics, inference, simulate
from probinterp.likelihoods import NegativeBinomialLikelihood
from probinterp.models import MultiStudySparseVAE
from probinterp.reporting import plot_activity, plot_stability


def samples(path: str | None, seed: int) -> anndata.AnnData:
    """The public series, or synthetic counts with the columns disease and batch."""
    if path is not None:
        return genomics.datasets.platelets(path)
    print("SYNTHETIC DATA: give --path for the public series.")
    truth = simulate.platelet_like(20, 150, 2, 1, n_studies=3, confounded=0.4, seed=seed)
    labels = {"disease": truth.study, "batch": truth.nuisance}
    obs = {key: [f"{key}{m}" for m in label.tolist()] for key, label in labels.items()}
    adata = anndata.AnnData(
        truth.x.numpy(), obs=pd.DataFrame(obs).rename(index="synthetic{}".format)
    )
    adata.var["symbol"] = [f"gene{j}" for j in range(adata.n_vars)]
    return adata


def main(path: str | None, out: str, epochs: int, n_shared: int, refits: int, seed: int = 0):
    """Fit, mend, refit; print stable factors and contrasts within batches."""
    adata = samples(path, seed)
    parts = genomics.split(adata, 0.2, stratify="disease", seed=seed)
    read = partial(genomics.from_anndata, study_key="disease", batch_key="batch")
    train = read(parts.train, drop_empty=True)
    heldout, everyone = read(parts.heldout, like=train), read(adata, like=train)
    studies = train.study_names
    make_model = lambda: MultiStudySparseVAE(  # noqa: E731
        train.n_vars,
        n_shared,
        1,
        len(studies),
        n_hidden=32,
        spike=2.0 * len(train),
        slab=0.1 * len(train),
        likelihood=NegativeBinomialLikelihood(train.n_vars, standardize=True),
        kl_warmup=0.2,
        n_nuisance_levels=len(train.nuisance_names),
    )
    adam = partial(torch.optim.Adam, lr=5e-3)
    options = {"max_epochs": epochs, "batch_size": 64, "optimizer": adam}

    def mended(model, data):
        moved = inference.mend_blocks(model, data, **options).model
        return inference.mend_codes(moved, data, rounds=1, **options).model

    refit = inference.refitting(make_model, mended, **options)
    model = refit(train, seed)
    print("blocks in order:", inference.block_check(model, train).passed)
    density = inference.log_predictive_density(model, heldout.batch(), seed=seed).mean()
    print(f"held-out log density: {density:.1f} nats per sample")

    found = inference.factors(model, everyone)
    names = found.named(studies)
    stable = inference.stability(refit, train.data, model, seeds=range(1, refits + 1))
    symbols = adata.var["symbol"].where(adata.var["symbol"] != "", adata.var_names)
    symbols = symbols[train.var_names].tolist()
    top = genomics.top_genes(found, 8, var_names=symbols, by_effect=True, study_names=studies)
    genes = top.groupby("factor")["gene"].apply(", ".join)
    for name, score in zip(names, stable.recovered.tolist(), strict=True):
        print(f"{name}: {'stable' if score >= 0.8 else 'not stable'}: {genes[name]}")

    shared = [k for k, name in enumerate(names) if name.startswith("shared")]
    scores = pd.DataFrame(found.scores[:, shared].numpy(), columns=[names[k] for k in shared])
    contrasts = genomics.factor_contrasts(scores, adata.obs["disease"], batch=adata.obs["batch"])
    print(contrasts.value_counts("status").to_string())
    (folder := Path(out)).mkdir(parents=True, exist_ok=True)
    contrasts.to_csv(folder / "contrasts.csv", index=False)
    activity = plot_activity(found.scores, names, everyone.batch().study, studies, found.block)
    activity.savefig(folder / "activity.png")
    plot_stability(stable, studies).savefig(folder / "stability.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Factors of platelet RNA.")
    parser.add_argument("--path", default=None)
    parser.add_argument("--out", default="platelets")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--shared", type=int, default=12)
    parser.add_argument("--refits", type=int, default=3)
    a = parser.parse_args()
    main(a.path, a.out, a.epochs, a.shared, a.refits)
