"""What a proxy does to a network, with tests, intervals and verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from probinterp.criticism.comparison import (
    Bootstrap,
    Curve,
    Family,
    Floor,
    PairedAccuracy,
    SubsetRank,
    Verdict,
    bootstrap_nmse,
    curve,
    family,
    paired_accuracy,
    self_discordance,
    subset_rank,
    verdict,
)
from probinterp.criticism.comparison.margins import Declared
from probinterp.vision import (
    ActivationData,
    Contributions,
    ReplacementEvaluation,
    SubsetCorrectness,
    Tower,
    all_subsets,
    attributed_order,
    contributions,
    evaluate_replacement,
    faithfulness_curves,
    orders_of,
    reaches_embedding,
    subset_correctness,
    text_embeddings,
    without_each,
    zero_shot,
)
from probinterp.vision.activation_data import TOKEN_TYPES
from probinterp.vision.cascade import Codes

MOST_SUBSETS = 1000
OTHERS = "the other windows and token types"
RANDOM_ORDERS = 20
OTHER_BATCH = 23  # any size but the usual one: sums are added in another order


class Task(NamedTuple):
    """Images to classify, and how.

    Attributes
    ----------
    tower
        CLIP tower.
    images
        Held-out images as :func:`probinterp.vision.zero_shot` takes them.
    labels
        Their classes.
    class_names, templates
        Prompts.
    text
        Embedded prompts.
    data
        Recorded activations of the same images.
    floor
        Disagreement of the network with itself.
    """

    tower: Tower
    images: Any
    labels: Any
    class_names: Sequence[str]
    templates: Sequence[str]
    text: Any
    data: ActivationData
    floor: Floor

    @property
    def kinds(self) -> tuple[Literal["cls", "patch"], ...]:
        """Types of tokens that were recorded."""
        found = set(self.data.token_type.unique().tolist())
        both: tuple[Literal["cls", "patch"], ...] = ("cls", "patch")
        return tuple(kind for kind in both if TOKEN_TYPES[kind] in found)

    @property
    def replaced(self) -> tuple[Literal["cls", "patch", "all"], ...]:
        """Types of tokens to replace: those recorded, and all together where both were."""
        return (*self.kinds, "all") if len(self.kinds) > 1 else self.kinds


class ProxyEvaluation(NamedTuple):
    """A proxy in the network and what may be said of it.

    Attributes
    ----------
    replacement
        Image by image.
    reconstruction
        Token type to R2 of the layers with image-bootstrap intervals.
    cosine
        The same for the mean cosine.
    comparisons
        Window and token type to the paired comparison.
    visible
        Windows that reach the embedding at all.
    primary
        Label of the comparison that was declared the main one: all layers, all tokens.
    verdict
        Its verdict, without a correction.
    family
        Verdicts of the other visible windows, corrected together.
    """

    replacement: ReplacementEvaluation
    reconstruction: dict[str, Bootstrap]
    cosine: dict[str, Bootstrap]
    comparisons: dict[str, PairedAccuracy]
    visible: dict[str, bool]
    primary: str
    verdict: Verdict
    family: Family

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """Verdict of each visible window: the main one by itself, the others corrected."""
        found = {self.primary: self.verdict} | self.family.verdicts
        return {label: found[label] for label in self.comparisons if self.visible[label]}


class Faithfulness(NamedTuple):
    """Which source layers the last layer's prediction needs, and which suffice.

    Attributes
    ----------
    contributions
        Token type to scores.
    centered
        The same scores of the variance.
    order
        Sources from the largest contribution to the last layer to the smallest.
    without
        Source to the paired comparison of the proxy without it in the last layer and the whole
        proxy.
    without_anywhere
        The same without it in any layer.
    kept
        Number of sources of the sufficiency test.
    rank
        Rank of the attributed set among all sets of this size.
    deletion, insertion
        Order to curve, random ones included.
    accuracy_network
        Of the network itself.
    """

    contributions: Mapping[Any, Contributions]
    centered: Mapping[Any, Contributions]
    order: tuple[int, ...]
    without: dict[int, PairedAccuracy]
    without_anywhere: dict[int, PairedAccuracy]
    kept: int
    rank: SubsetRank
    deletion: dict[str, Curve]
    insertion: dict[str, Curve]
    accuracy_network: float


def chosen_images(data: ActivationData, most: int, seed: int) -> Tensor:
    """Places of at most so many images, drawn at random: neighbours are often of one class."""
    order = torch.randperm(data.n_images, generator=torch.Generator().manual_seed(seed))
    return order[:most].sort().values


def classification(
    tower: Tower,
    images: Any,
    labels: Any,
    class_names: Sequence[str],
    templates: Sequence[str],
    data: ActivationData,
    *,
    tokenizer: Any = None,
) -> Task:
    """Embed the prompts and measure how far the network disagrees with itself."""
    text = text_embeddings(tower, class_names, templates, tokenizer=tokenizer)
    options: dict[str, Any] = {"labels": labels, "text": text}
    runs = [
        zero_shot(tower, images, class_names, templates, batch_size=size, **options).predictions
        for size in (64, OTHER_BATCH)
    ]
    floor = self_discordance(*runs)
    return Task(tower, images, labels, class_names, templates, text, data, floor)


def evaluate_proxy(
    proxy: Any,
    task: Task,
    *,
    margin: float,
    declared: Declared = "before",
    alpha: float = 0.05,
    seed: int = 0,
    windows: Sequence[Sequence[int]] | None = None,
    codes: Codes = "mean",
) -> ProxyEvaluation:
    """Replace MLPs by a proxy in every window and say whether accuracy is preserved.

    Parameters
    ----------
    proxy
        Transcoder or baseline.
    task
        What :func:`classification` gave.
    margin
        Largest loss of accuracy that counts as preserved, such as 0.01.
    declared
        Whether the margin was fixed before or after the data were seen.
    alpha
        One-sided level of the tests.
    seed
        Seed of the bootstraps.
    windows
        Layers to replace together; by default from each layer to the last, the first of which is
        the main one.
    codes
        See :func:`probinterp.vision.replace_mlps`; reconstruction is always by the means.
    """
    found = evaluate_replacement(
        task.tower,
        proxy,
        task.images,
        task.labels,
        task.class_names,
        task.templates,
        text=task.text,
        data=task.data,
        windows=windows,
        tokens=task.replaced,
        codes=codes,
    )
    compared = {
        window_label(w.layers, w.tokens): paired_accuracy(
            found.correct, w.correct, rope=margin, seed=seed
        )
        for w in found.windows
    }
    visible = {window_label(w.layers, w.tokens): w.visible for w in found.windows}
    widest = max((w for w in found.windows if w.visible), key=_extent)
    primary = window_label(widest.layers, widest.tokens)
    options: dict[str, Any] = {"margin": margin, "alpha": alpha, "declared": declared}
    others = {label: c for label, c in compared.items() if visible[label] and label != primary}
    return ProxyEvaluation(
        found,
        _bootstraps(found, "r2", seed),
        _bootstraps(found, "cosine", seed),
        compared,
        visible,
        primary,
        verdict(compared[primary], floor=task.floor, **options),
        family(OTHERS, others, **options) if others else Family(OTHERS, "holm", {}),
    )


def evaluate_faithfulness(
    clt: Any, task: Task, *, kept: int | None = None, seed: int = 0
) -> Faithfulness:
    """Contributions of the sources, and what is left of accuracy without or with only some.

    Parameters
    ----------
    clt
        Cross-layer transcoder.
    task
        What :func:`classification` gave.
    kept
        Sources of the sufficiency test; default: 4, or half of them where there are few.
    seed
        Seed of random orders and bootstraps.

    Raises
    ------
    ValueError
        If no source is kept, or all are.

    Notes
    -----
    Sources are ordered by their contributions on the tokens that the embedding is made of. All
    tokens are replaced, or those that were recorded.
    """
    kinds = task.kinds
    scores = {kind: contributions(clt, task.data, tokens=kind) for kind in kinds}
    centered = {kind: contributions(clt, task.data, tokens=kind, centered=True) for kind in kinds}
    n_layers = clt.n_layers
    seen = [k for k in kinds if reaches_embedding(task.tower, [n_layers - 1], k)]
    main = scores[(seen or kinds)[0]]
    order = attributed_order(main)
    kept = min(4, max(1, n_layers // 2)) if kept is None else kept
    if not 1 <= kept < n_layers:
        raise ValueError(f"kept must be 1 to {n_layers - 1} of {n_layers} sources, got {kept}.")
    subsets = all_subsets(n_layers, kept)
    attributed = tuple(sorted(order[:kept]))
    complete = len(subsets) <= MOST_SUBSETS
    if not complete:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(subsets), generator=generator)[: MOST_SUBSETS - 1]
        subsets = tuple({attributed, *(subsets[i] for i in chosen.tolist())})
    options: dict[str, Any] = {"labels": task.labels, "tokens": task.replaced[-1]}
    correctness = partial(subset_correctness, task.tower, clt, task.images, task.text, **options)
    run = correctness(subsets=[*without_each(n_layers), *subsets])
    anywhere = correctness(subsets=without_each(n_layers), scope="all")
    values = {s: run.of(s).double().mean().item() for s in subsets}
    lines = faithfulness_curves(
        task.tower,
        clt,
        task.images,
        task.text,
        orders_of(main, n_random=RANDOM_ORDERS, seed=seed),
        **options,
    )
    return Faithfulness(
        scores,
        centered,
        order,
        _without_each(run, n_layers, seed),
        _without_each(anywhere, n_layers, seed),
        kept,
        subset_rank(values, attributed, complete=complete),
        {n: curve(c, lines.kept_fraction, seed=seed) for n, c in lines.deletion.items()},
        {n: curve(c, 1 - lines.kept_fraction, seed=seed) for n, c in lines.insertion.items()},
        run.network.double().mean().item(),
    )


def _without_each(run: SubsetCorrectness, n_layers: int, seed: int) -> dict[int, PairedAccuracy]:
    return {
        source: paired_accuracy(run.replaced, run.of(rest), seed=seed)
        for source, rest in enumerate(without_each(n_layers))
    }


def window_label(layers: Sequence[int], tokens: str) -> str:
    """Name of a window and token type: ``"layers 2-11, cls tokens"``."""
    first, last = layers[0], layers[-1]
    consecutive = tuple(layers) == tuple(range(first, last + 1))
    span = f"{first}-{last}" if consecutive else ",".join(map(str, layers))
    which = f"layer {first}" if len(layers) == 1 else f"layers {span}"
    return f"{which}, {'' if tokens == 'all' else 'only '}{tokens} tokens"


def replacement_rows(found: Mapping[str, ProxyEvaluation]) -> list[dict[str, Any]]:
    """One row a proxy, window and token type, for a table or a CSV file."""
    rows = []
    for name, evaluation in found.items():
        for label, compared in evaluation.comparisons.items():
            judged = evaluation.verdicts.get(label)
            rows.append(
                {
                    "proxy": name,
                    "window": label,
                    "accuracy": compared.accuracy_proxy,
                    "change": compared.difference,
                    "low": compared.tango.low,
                    "high": compared.tango.high,
                    "lost": compared.cells.network_only,
                    "gained": compared.cells.proxy_only,
                    "McNemar mid-p": compared.p_midp,
                    "verdict": "cannot change" if judged is None else judged.decision,
                    "corrected": _correction(label, evaluation),
                }
            )
    return rows


def _correction(label: str, evaluation: ProxyEvaluation) -> str:
    """How the verdict of a window was corrected: not at all where it is the main one."""
    if label == evaluation.primary:
        return "main"
    return "Holm" if label in evaluation.family.verdicts else "none"


def reconstruction_rows(found: Mapping[str, ProxyEvaluation]) -> list[dict[str, Any]]:
    """One row a proxy, token type and layer: R2 and cosine with intervals, active codes."""
    rows = []
    for name, evaluation in found.items():
        for kind, r2 in evaluation.reconstruction.items():
            sums, cosine = evaluation.replacement.reconstruction[kind], evaluation.cosine[kind]
            for layer in range(len(r2.estimate)):
                active, gates = (
                    None if codes is None else codes[layer].item()
                    for codes in (sums.l0(), sums.expected_l0())
                )
                rows.append(
                    {
                        "proxy": name,
                        "tokens": kind,
                        "layer": layer,
                        "R2": r2.estimate[layer].item(),
                        "R2 low": r2.low[layer].item(),
                        "R2 high": r2.high[layer].item(),
                        "cosine": cosine.estimate[layer].item(),
                        "cosine low": cosine.low[layer].item(),
                        "cosine high": cosine.high[layer].item(),
                        "L0": active,
                        "sum of gates": gates,
                    }
                )
    return rows


def _bootstraps(found: ReplacementEvaluation, metric: Any, seed: int) -> dict[str, Bootstrap]:
    return {
        kind: bootstrap_nmse(sums, metric=metric, n_boot=1000, seed=seed)
        for kind, sums in found.reconstruction.items()
    }


def _extent(window: Any) -> tuple[int, bool]:
    return len(window.layers), window.tokens == "all"
