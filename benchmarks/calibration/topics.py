"""Topic models: which check sees which misfit, classical and population, on texts.

Latent Dirichlet allocation is fitted by variational inference to simulated documents (20 topics,
500 words, about 100 words a document; 500 documents to fit, 100 held out): as the model says, with
bursts of words, or with fewer or more topics fitted than there are; and to the Reuters texts of
the package ``lda`` (395 documents, 4258 words; a fifth held out). Three checks of equal size:

classical PPC   100 documents of the fit, proportions inferred from these documents themselves
new documents   held-out documents, proportions of the replicates from their prior
completion      half the words of held-out documents, proportions inferred from the other half

Expected: the right model passes on new documents, nearly so in completion, where the variational
posterior of the proportions counts, and fails the classical check, whose plug-in log likelihood
finds the documents of the fit too likely. Bursts and lumped topics are seen by the mutual
information of word and document within topics. Too many topics are seen on new documents, whose
prior spreads each document too thinly, and not in completion. On the Reuters texts every number
of topics fails, while the log likelihood of the classical check changes sign between ten and
twenty topics and finds little there.

    python benchmarks/calibration/topics.py --sets 40 --out docs/studies/topics.csv
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from study import arguments, report
from torch import Tensor

from probinterp import simulate
from probinterp.criticism import Discrepancy, PopPCResult, discrepancies, pop_pc_suite, split_counts
from probinterp.inference import ArrayData, cosine, fit, posterior, predictive_draws
from probinterp.models import Batch, LatentDirichletAllocation

N_OBS, N_NEW, N_TOPICS, BURSTS = 500, 100, 20, 400.0
TOO_FEW, TOO_MANY = 15, 25
MISFIT_EVERY = 5  # data sets: misfits need fewer of them than the right model
REUTERS_TOPICS, REUTERS_SPLITS = (5, 10, 20, 40), 2


class Corpus(NamedTuple):
    """Documents to fit and held-out ones, and how many topics to fit."""

    name: str
    x_obs: Tensor
    x_new: Tensor
    n_topics: int


def simulated(seed: int, misfits: bool) -> Iterator[Corpus]:
    """Documents as the model says; with bursts, and with too few and too many topics fitted."""
    n = N_OBS + N_NEW
    plain = simulate.topics(n, n_topics=N_TOPICS, seed=seed).x.split([N_OBS, N_NEW])
    yield Corpus("right model", *plain, N_TOPICS)
    if not misfits:
        return
    yield Corpus("too few topics", *plain, TOO_FEW)
    yield Corpus("too many topics", *plain, TOO_MANY)
    bursty = simulate.topics(n, n_topics=N_TOPICS, burst_concentration=BURSTS, seed=seed).x
    yield Corpus("bursts", *bursty.split([N_OBS, N_NEW]), N_TOPICS)


def reuters(seed: int) -> Iterator[Corpus]:
    """A random fifth of the Reuters documents held out; nothing where they are not installed."""
    try:
        from lda.datasets import load_reuters
    except ImportError:
        print("the Reuters texts are left out: pip install lda")
        return
    x = torch.as_tensor(load_reuters()).float()
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))]
    for n_topics in REUTERS_TOPICS:
        yield Corpus("Reuters", *x.tensor_split([4 * len(x) // 5]), n_topics)


def fitted(corpus: Corpus, seed: int) -> LatentDirichletAllocation:
    """Fit by full-batch steps with a large, decaying learning rate."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LatentDirichletAllocation(corpus.x_obs.shape[1], corpus.n_topics)
    fit(
        model,
        ArrayData(corpus.x_obs),
        max_epochs=60,
        batch_size=len(corpus.x_obs),
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.2),
        schedule=cosine,
        seed=seed,
        device="cpu",
        progress=False,
    )
    return model


def suite(model: LatentDirichletAllocation) -> dict[str, Discrepancy]:
    """What is compared: scalars, the last three ignore the model."""
    size = model.log_concentration.detach().exp().sum(1)
    within = discrepancies.word_document_mutual_information(model.topics.detach().mT * size)
    return {
        "neg. log likelihood": discrepancies.mean_negative_log_likelihood,
        "MI within topics": lambda x, draw: within(x, draw) @ (size / size.sum()),
        "MI, all words": discrepancies.word_document_mutual_information(),
        "zeros": lambda x, draw: discrepancies.zero_fraction(x, draw).mean(),
        "dispersion": lambda x, draw: discrepancies.index_of_dispersion(x, draw).mean(),
        "largest count": discrepancies.maximum,
    }


def check(corpus: Corpus, n_draws: int, seed: int) -> dict[str, dict[str, PopPCResult]]:
    """Fit, and check three ways; also print how well held-out halves are predicted."""
    model = fitted(corpus, seed)
    compare, n_new = suite(model), len(corpus.x_new)
    old, new = Batch(corpus.x_obs[:n_new]), Batch(corpus.x_new)
    halves = split_counts(corpus.x_new, 0.5, seed, fixed_totals=True)
    known, rest = Batch(halves.observed), Batch(halves.heldout)
    words = posterior(model, known)["theta"].mean @ model.topics.detach()
    score = -(rest.x * words.log()).sum() / rest.x.sum()
    print(f"{corpus.name}, {corpus.n_topics} topics: {score:.3f} nats a word", flush=True)
    sources = {  # the first is the classical check: same numbers as ppc(), in one pass
        "classical PPC": (old, {"local": "posterior"}),
        "new documents": (new, {"local": "prior"}),
        "completion": (rest, {"local": "observed", "observed": known}),
    }
    return {
        name: pop_pc_suite(
            predictive_draws(model, batch, n_draws, seed=seed, **options),
            batch.x,
            compare,
            seed=seed,
        )
        for name, (batch, options) in sources.items()
    }


def rows_of(found: list[tuple[Corpus, dict[str, dict[str, PopPCResult]]]]) -> list[dict]:
    """Rejection rates and mean effect sizes by corpus, check and discrepancy."""
    groups: dict[tuple, list[PopPCResult]] = {}
    for corpus, checks in found:
        for name, results in checks.items():
            for discrepancy, result in results.items():
                key = (corpus.name, corpus.n_topics, name, discrepancy)
                groups.setdefault(key, []).append(result)
    rows = []
    for key, results in groups.items():
        n_sets, n_rejected = len(results), sum(r.p_two_sided.item() <= 0.05 for r in results)
        row = dict(zip(("data", "fitted topics", "check", "discrepancy"), key, strict=True))
        near = (n_rejected + 2) / (n_sets + 4)  # Agresti and Coull: 0 of 7 is not certainty
        error = math.sqrt(near * (1 - near) / (n_sets + 4))
        effect = float(np.mean([r.z.item() for r in results]))
        rate = {"sets": n_sets, "rej5": n_rejected / n_sets, "se": error, "mean z": effect}
        rows.append(row | rate)
    return rows


def draw(rows: list[dict], path: Path) -> None:
    """One panel a check: share of rejections as colour, mean effect size as number."""
    checks, columns, lines = (
        list(dict.fromkeys(map(key, rows)))
        for key in (
            lambda r: r["check"],
            lambda r: r["discrepancy"],
            lambda r: f"{r['data']}, {r['fitted topics']} fitted ({r['sets']} sets)",
        )
    )
    figure, axes = plt.subplots(
        1, len(checks), figsize=(13, 4.6), sharey=True, layout="constrained"
    )
    for axis, name in zip(axes, checks, strict=True):
        chosen = [r for r in rows if r["check"] == name]
        shape = (len(lines), len(columns))
        rate = np.array([r["rej5"] for r in chosen]).reshape(shape)
        image = axis.imshow(rate, vmin=0, vmax=1, cmap="Reds", aspect="auto")
        for index, row in enumerate(chosen):
            line, column = divmod(index, len(columns))
            color = "white" if rate[line, column] > 0.6 else "black"
            text = f"{row['mean z']:+.1f}"
            axis.text(column, line, text, ha="center", va="center", color=color, fontsize=8)
        axis.set_xticks(range(len(columns)), columns, rotation=40, ha="right")
        axis.set_title(name)
    axes[0].set_yticks(range(len(lines)), lines)
    figure.colorbar(image, ax=axes, label="share rejected at 5 %; numbers: mean effect in sd")
    figure.savefig(path, dpi=150)


def main() -> None:
    options = arguments(__doc__, n_sets=40, n_draws=119)
    found = []
    seeds = np.random.SeedSequence(options.seed).generate_state(options.sets).tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, seed in enumerate(seeds):
            corpora = simulated(seed, misfits=number % MISFIT_EVERY == 0)
            found += [(c, check(c, options.draws, seed)) for c in corpora]
        for seed in seeds[:REUTERS_SPLITS]:
            found += [(c, check(c, options.draws, seed)) for c in reuters(seed)]
    rows = rows_of(found)
    report(rows, options.out)
    if options.out is not None:
        draw(rows, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
