"""Fit topics to documents and ask whether to believe them, by document completion.

Half the words of every held-out document tell what it is about; the model replicates the other
half. On documents of eight topics, eight topics pass and four do not: words that belong to
different subjects share a topic, so that within a topic a word knows its document.

    python examples/topics.py
"""

import torch

from probinterp import discrepancies, fit, pop_pc, predictive_draws, simulate
from probinterp.criticism import PopPCResult, split_counts
from probinterp.inference import ArrayData, cosine
from probinterp.models import Batch, LatentDirichletAllocation


def fitted(counts: torch.Tensor, n_topics: int) -> LatentDirichletAllocation:
    """Fit by full-batch steps; log concentrations have far to go, so the steps are large."""
    torch.manual_seed(0)
    model = LatentDirichletAllocation(counts.shape[1], n_topics)
    fit(
        model,
        ArrayData(counts),
        max_epochs=60,
        batch_size=len(counts),
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.2),
        schedule=cosine,
        progress=False,
    )
    return model


def check(model: LatentDirichletAllocation, held_out: torch.Tensor) -> PopPCResult:
    """Complete held-out documents; compare the information of words about documents."""
    halves = split_counts(held_out, 0.5, seed=1, fixed_totals=True)
    observed, rest = Batch(halves.observed), Batch(halves.heldout)
    draws = predictive_draws(model, rest, 199, local="observed", observed=observed, seed=2)
    return pop_pc(draws, rest.x, discrepancies.word_document_mutual_information(), seed=3)


def main() -> dict[int, PopPCResult]:
    corpus = simulate.topics(600, n_features=200, n_topics=8, length=80, seed=0)
    train, held_out = corpus.x.split([500, 100])
    results = {}
    for n_topics in (8, 4):
        model = fitted(train, n_topics)
        results[n_topics] = check(model, held_out)
        print(f"\n{n_topics} topics; most frequent words")
        for topic in model.topics.topk(6).indices.tolist():
            print("  " + " ".join(f"word_{word}" for word in topic))
        print(results[n_topics].verdict())
    return results


if __name__ == "__main__":
    main()
