"""The page of proxies in a vision tower: verdicts, reconstruction, contributions, features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure as MatplotlibFigure

from probinterp.criticism import adjust
from probinterp.criticism.comparison import PairedAccuracy
from probinterp.jobs.check_pages import versions
from probinterp.jobs.clt_checks import check_sentence, checks_section, flagged_discrepancies
from probinterp.jobs.clt_code_checks import CodeChecks, codes_section
from probinterp.jobs.clt_evaluation import (
    Faithfulness,
    ProxyEvaluation,
    reconstruction_rows,
    replacement_rows,
)
from probinterp.reporting import (
    Figure,
    Finding,
    Section,
    Table,
    plot_contributions,
    plot_faithfulness,
    plot_feature_card,
    plot_reconstruction,
    plot_replacement,
    write_report,
)
from probinterp.vision import ActivationData, FeatureCard, feature_card, top_images

CARDS = 8
MOST_CARDS = 12
CARD_IMAGES = 8
LOOKED_AT, LEAST_SHARE = 4, 0.5  # features for each card; images in which patches are active
KINDS = {"cls": "class token", "patch": "patches"}
RARE, COMMON = 0.02, 0.5  # share of images beyond which features make poor cards
READING = (
    "“Preserves” means that a loss larger than the margin was rejected by a "
    "non-inferiority test at one-sided level 5 %. “Changes” means that it was not and that a "
    "change was shown. “Not enough data to tell” means neither: a difference that is not "
    "significant is no evidence that accuracy is preserved, and more images may decide it. The "
    "main comparison, all layers and tokens, is tested by itself; all others are corrected "
    "together (Holm), which with few images leaves little that they can show. Windows whose "
    "replaced outputs never reach the embedding cannot change anything: the table says so, the "
    "figures omit them."
)


def write_clt_page(
    path: Path,
    evaluations: Mapping[str, ProxyEvaluation],
    faithfulness: Faithfulness | None,
    cards: Sequence[tuple[FeatureCard, Any]] = (),
    *,
    title: str,
    margin: float,
    settings: Mapping[str, Any],
    class_names: Sequence[str] | None = None,
    checks: pd.DataFrame | None = None,
    codes: Mapping[str, CodeChecks] = MappingProxyType({}),
) -> Path:
    """Write the page.

    Parameters
    ----------
    path
        HTML file to write.
    evaluations
        Name of the proxy to what it does, the main one first.
    faithfulness
        Of the main one, or None where it has no codes.
    cards
        Features of the main one with their pictures.
    title, settings
        Heading, and settings to list beside the versions.
    margin
        The margin of the verdicts.
    class_names
        Names of the classes.
    checks
        Predictive checks, from :mod:`~probinterp.jobs.clt_checks`, or None if there were too few
        images.
    codes
        Checks of uncertain codes by name of the proxy.
    """
    sections = [_replacement(evaluations, margin), _reconstruction(evaluations)]
    findings = [
        Finding(f"{name}, {e.primary}: {e.verdict}", e.verdict.passed)
        for name, e in evaluations.items()
    ]
    if faithfulness is not None:
        sections += [_contributions(faithfulness), _sources(faithfulness)]
        findings.append(Finding(_rank_statement(faithfulness)))
    sections.append(checks_section(checks))
    if codes:
        sections.append(codes_section(codes))
    if checks is not None:
        findings += [
            Finding(check_sentence(name, flagged), not flagged)
            for name, flagged in flagged_discrepancies(checks).items()
        ]
    if cards:
        sections.append(_features(cards, class_names))
    return write_report(
        path,
        title=title,
        sections=sections,
        findings=findings,
        settings=dict(settings) | versions(),
    )


def choose_cards(clt: Any, data: ActivationData, images: Any) -> list[tuple[FeatureCard, Any]]:
    """Features of patches, neither always nor hardly ever active, the strongest of each layer.

    Parameters
    ----------
    clt
        Transcoder.
    data
        Recorded activations, class token and patches.
    images
        The images that were recorded, by number.
    """
    top = top_images(clt, data, n=CARD_IMAGES)
    share = top.n_images / data.n_images
    fit_for_show = (share > RARE) & (share < COMMON)
    strength = top.score.mean(-1).where(fit_for_show, -torch.inf)
    each = -(-CARDS // clt.n_layers)
    found = []
    for place, layer in enumerate(top.layers):
        best = strength[place].argsort(descending=True)[: LOOKED_AT * each]
        chosen = best[strength[place][best] > -torch.inf]
        cards = (feature_card(clt, data, top, layer, feature) for feature in chosen.tolist())
        of_patches = (card for card in cards if _share_with_patches(card) >= LEAST_SHARE)
        for card in islice(of_patches, each):
            pictures = torch.stack([torch.as_tensor(images[i]) for i in card.images.tolist()])
            found.append((card, pictures))
    return found[:MOST_CARDS]


def _share_with_patches(card: FeatureCard) -> float:
    return (card.heat_maps.flatten(1) != 0).any(1).double().mean().item()


def _replacement(evaluations: Mapping[str, ProxyEvaluation], margin: float) -> Section:
    figures = []
    for name, evaluation in evaluations.items():
        verdicts = evaluation.verdicts
        compared = [evaluation.comparisons[label] for label in verdicts]
        bounds = [v.margin_test.bounds for v in verdicts.values()]
        axes = plot_replacement(
            list(verdicts),
            [c.difference for c in compared],
            [b.low for b in bounds],
            [b.high for b in bounds],
            margin=margin,
            decisions=[v.decision for v in verdicts.values()],
            title=name,
        )
        caption = (
            f"{name}: accuracy with the proxy minus accuracy of the network on the same images, "
            "with lower and upper bounds at one-sided level 5 % each, uncorrected; colours: "
            f"verdicts, corrected over the windows but for the main one ({evaluation.primary})."
        )
        figures.append(Figure(axes, caption))
    caption = (
        "Every window; changes in percentage points with two-sided 95 % Tango intervals. lost: "
        "images that only the network recognises; gained: only the proxy."
    )
    rows = [
        {
            "proxy": row["proxy"],
            "window": row["window"],
            "accuracy, %": f"{100 * row['accuracy']:.1f}",
            "change [interval]": f"{100 * row['change']:+.2f} [{100 * row['low']:.2f}, "
            f"{100 * row['high']:.2f}]",
            "lost, gained": f"{row['lost']}, {row['gained']}",
            "mid-p": row["McNemar mid-p"],
            "verdict": f"{row['verdict']} (main)" if row["corrected"] == "main" else row["verdict"],
        }
        for row in replacement_rows(evaluations)
    ]
    table = Table(pd.DataFrame(rows), caption, {"mid-p": ".2g"})
    return Section("May the proxy stay in the network?", READING, figures, [table])


def _reconstruction(evaluations: Mapping[str, ProxyEvaluation]) -> Section:
    figures = []
    for kind in next(iter(evaluations.values())).reconstruction:
        series = {name: e.reconstruction[kind] for name, e in evaluations.items()}
        caption = (
            f"Share of the variance of the MLP outputs that is explained, {KINDS[kind]}; 95 % "
            "intervals from resampled images. Triangles: below zero, worse than the mean."
        )
        figures.append(Figure(plot_reconstruction(series, quantity=f"R², {KINDS[kind]}"), caption))
    rows = [
        {
            **{name: row[name] for name in ("proxy", "tokens", "layer")},
            "R2 [interval]": f"{row['R2']:.3f} [{row['R2 low']:.3f}, {row['R2 high']:.3f}]",
            "cosine [interval]": f"{row['cosine']:.3f} [{row['cosine low']:.3f}, "
            f"{row['cosine high']:.3f}]",
            "L0": row["L0"],
            "gates": row["sum of gates"],
        }
        for row in reconstruction_rows(evaluations)
    ]
    caption = (
        "L0: active codes a token; gates: sum of their probabilities. cosine: mean cosine of "
        "output and reconstruction."
    )
    table = Table(pd.DataFrame(rows), caption, {"L0": ".1f", "gates": ".1f"})
    text = (
        "On activations of the network itself, layer by layer. In the replacement above errors "
        "of lower layers reach the higher ones."
    )
    return Section("How well are the MLP outputs reconstructed?", text, figures, [table])


def _contributions(found: Faithfulness) -> Section:
    kinds, n_layers = list(found.contributions), len(found.without)
    height = max(3.0, 1.5 + 0.38 * n_layers) * len(kinds)
    panels = MatplotlibFigure(figsize=(2 * (2.6 + 0.36 * n_layers), height), layout="constrained")
    for row, kind in zip(panels.subplots(len(kinds), 2, squeeze=False), kinds, strict=True):
        name = KINDS[kind].capitalize()
        plot_contributions(found.contributions[kind].matrix, title=name, ax=row[0])
        plot_contributions(found.centered[kind].matrix, title=f"{name}, of the variance", ax=row[1])
    caption = "Contributions of source layers (rows) to target layers (columns)."
    figures = [Figure(panels, caption)]
    text = (
        "Share of each source layer in what the transcoder writes to each target layer. A source "
        "that always writes the same has a large score; the scores of the variance do not count "
        "what is constant."
    )
    return Section("Which layers write to which?", text, figures)


def _sources(found: Faithfulness) -> Section:
    figures = []
    for name, curves in (("taken away", found.deletion), ("added", found.insertion)):
        shown = {n: c for n, c in curves.items() if n in ("contribution", "reverse")}
        random = [c.accuracy for n, c in curves.items() if n.startswith("random")]
        axes = plot_faithfulness(
            shown, random, network=found.accuracy_network, title=f"Sources {name} one by one"
        )
        caption = f"Sources of the last layer {name} by contribution; bands: 95 % over images."
        figures.append(Figure(axes, caption))
    rows = [
        {
            "without source": source,
            "in": where,
            "accuracy": c.accuracy_proxy,
            "change": c.difference,
            "low": c.tango.low,
            "high": c.tango.high,
            "McNemar mid-p": c.p_midp,
            "Holm": p,
        }
        for where, compared in (
            ("the last layer", found.without),
            ("every layer", found.without_anywhere),
        )
        for (source, c), p in zip(compared.items(), _holm(compared), strict=True)
    ]
    caption = (
        "Necessity: the proxy in all layers without what one source writes to the last layer, or "
        "to any, against the whole proxy; Holm: p corrected over the sources."
    )
    text = (
        f"{_rank_statement(found)}\n\nLayers are not exchangeable, so the rank describes and is no "
        "test of a hypothesis; few layers allow few different ranks."
    )
    table = Table(pd.DataFrame(rows), caption, {"McNemar mid-p": ".2g", "Holm": ".2g"})
    return Section("Which sources are needed, which suffice?", text, figures, [table])


def _holm(compared: Mapping[int, PairedAccuracy]) -> list[float]:
    p = torch.tensor([c.p_midp for c in compared.values()], dtype=torch.float64)
    return list(adjust(p, "holm").tolist())


def _rank_statement(found: Faithfulness) -> str:
    kept = ", ".join(map(str, sorted(found.order[: found.kept])))
    return f"Keeping the {found.kept} sources of largest contribution ({kept}): {found.rank}"


def _features(cards: Sequence[tuple[FeatureCard, Any]], names: Sequence[str] | None) -> Section:
    panels = MatplotlibFigure(figsize=(7.4, 2.3 * len(cards)), layout="constrained")
    rows = panels.subplots(len(cards), squeeze=False)[:, 0]
    for ax, (card, pictures) in zip(rows, cards, strict=True):
        plot_feature_card(card, pictures, class_names=names, ax=ax)
    caption = (
        "Strongest images of each feature, and the activation of their patches (yellow: most)."
    )
    figures = [Figure(panels, caption)]
    text = "The strongest features of each layer among those active in 2 to 50 % of the images."
    return Section("What do features respond to?", text, figures)
