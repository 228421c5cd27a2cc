"""Blood cells from counts to named factors: a sparse VAE, marker groups, a check and figures.

The 700 cells and 765 genes ship with scanpy. 140 cells are held out; the factors are written into
the AnnData, compared with the annotated cell types, and the model is checked on the held-out cells.

    python examples/pbmc_sparse_vae.py --epochs 150 --out pbmc
"""

import argparse
from functools import partial
from pathlib import Path

import torch

import probinterp
from probinterp import genomics
from probinterp.inference import cosine
from probinterp.likelihoods import NegativeBinomialLikelihood
from probinterp.models import SparseVAE
from probinterp.reporting import (
    factor_activity,
    loadings_heatmap,
    pop_pc_distribution,
    training_curve,
)


def main(epochs: int = 150, out: str | Path = "pbmc", n_draws: int = 100, seed: int = 0):
    """Fit, interpret, check; return the AnnData and the result of the check."""
    adata = genomics.datasets.pbmc68k()
    parts = genomics.split(adata, 0.2, stratify="bulk_labels", seed=seed)
    read = partial(genomics.from_anndata, size_factor_key="n_counts")
    train = read(parts.train, drop_empty=True)
    heldout = read(parts.heldout, like=train)

    torch.manual_seed(seed)
    model = SparseVAE(
        train.n_vars,
        n_factors=10,
        n_hidden=32,
        start="components",
        spike=len(train),
        slab=0.01 * len(train),
        likelihood=NegativeBinomialLikelihood(train.n_vars),
    )
    history = probinterp.fit(
        model,
        train,
        max_epochs=epochs,
        batch_size=64,
        optimizer=partial(torch.optim.Adam, lr=1e-2),
        schedule=cosine,
        heldout=heldout,
        seed=seed,
        progress=False,
    )
    print(history)

    everyone = read(adata, like=train)
    found = probinterp.factors(model, everyone)
    genomics.write_factors(adata, found, data=everyone)
    genes = genomics.top_genes(adata, 8, by_effect=True).groupby("factor")["gene"].apply(", ".join)
    cell_types = adata.obs["bulk_labels"].to_numpy()
    groups = genomics.marker_groups(found.scores, cell_types).query("best")
    for row in groups.itertuples():
        print(f"{row.factor}: {row.group} (AUC {row.separation:.2f}): {genes[row.factor]}")

    draws = probinterp.predictive_draws(model, heldout.batch(), n_draws, seed=seed)
    counts = heldout.batch().x.to_dense()
    library_size = probinterp.discrepancies.library_size
    check = probinterp.pop_pc(draws, counts, library_size, n_obs=len(train))
    print(check.verdict())

    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        "training": training_curve(history),
        "effects": loadings_heatmap(
            found.effects, found.inclusion, feature_names=list(train.var_names), n_top=5
        ),
        "activity": factor_activity(found.scores, cell_types),
        "library_size": pop_pc_distribution(check),
    }
    for name, axes in figures.items():
        axes.figure.savefig(folder / f"{name}.png", dpi=150)
    adata.write_h5ad(folder / "adata.h5ad")
    print(f"wrote {', '.join(figures)} and adata.h5ad to {folder}")
    return adata, check


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Sparse VAE of 700 blood cells.")
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--out", default="pbmc")
    arguments = parser.parse_args()
    main(arguments.epochs, arguments.out, arguments.draws)
