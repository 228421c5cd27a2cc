"""The report of a platelet cohort as one HTML page, and its figures as files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from probinterp.genomics.contrasts import DIFFERENCE
from probinterp.inference.code_mending import CodeChange
from probinterp.jobs.check_pages import versions
from probinterp.jobs.platelet_cohort import SYNTHETIC, Cohort
from probinterp.jobs.platelet_models import OURS, STABLE, PlateletFit, PlateletMending
from probinterp.jobs.platelet_tables import (
    BATCH_ONLY,
    EVERYONE,
    FEW_SAMPLES,
    FINDING,
    OWN_SAMPLES,
    UNSTABLE,
    PlateletTables,
)
from probinterp.reporting import (
    Figure,
    Finding,
    Section,
    Table,
    plot_activity,
    plot_block_loadings,
    plot_stability,
    plot_variance_explained,
    training_curve,
    write_report,
)

SHOWN_SETS = 20


def write_platelet_page(
    path: Path,
    cohort: Cohort,
    result: PlateletFit,
    tables: PlateletTables,
    settings: Mapping[str, Any],
) -> list[Path]:
    """Write the report and beside it every figure as PNG; return the files.

    Only factors that come back in refits, and in which not batches alone show, are findings.
    """
    figures = _figures(cohort, result, tables)
    files = [_save(path.parent / f"{name}.png", shown) for name, shown in figures.items()]
    sections = [
        _data(cohort),
        _factors(tables, figures),
        _contrasts(cohort, tables),
        *_gene_sets(tables),
        _heldout(tables, figures),
        _training(result, figures),
    ]
    write_report(
        path,
        title=f"{cohort.title}: factors that diseases share, and their own",
        sections=sections,
        findings=_findings(cohort, tables),
        settings=dict(settings) | versions(),
    )
    return [path, *files]


def moves_in_words(mending: PlateletMending) -> list[str]:
    """Changes of the mending, one phrase each."""
    moved = [f"column {m.column} to {list(m.targets)}: {m.reason}" for m in mending.blocks.moves]
    coded = [_code_change(change) for change in mending.codes.changes]
    undone = [f"rejected, column {m.column}: {m.reason}" for m in mending.blocks.rejected]
    undone += [f"rejected, {_code_change(change)}" for change in mending.codes.rejected]
    taken = [f"{name} taken out: it does not come back in refits" for name in mending.removed]
    return moved + coded + undone + taken


def _code_change(change: CodeChange) -> str:
    with_ = "" if change.dropped is None else f" with {change.dropped}"
    return f"column {change.column}{with_}: {change.reason}"


def _findings(cohort: Cohort, tables: PlateletTables) -> list[Finding]:
    found = [Finding(cohort.note, False)] if cohort.synthetic else []
    stable = tables.with_status(FINDING)
    for row in tables.factors[tables.factors["status"] == FINDING].to_dict("records"):
        genes = ", ".join(filter(None, (row["rise"], row["fall"])))
        uneven = ", but varies three times as much in some diseases" if row["uneven"] else ""
        found.append(Finding(f"{row['factor']} is stable{uneven}; its genes: {genes}."))
    if not stable:
        found.append(Finding("No factor is stable: there is no finding about factors.", False))
    if len(tables.contrasts):
        kept = tables.contrasts["factor"].isin(stable)
        differences = tables.contrasts[kept & (tables.contrasts["status"] == DIFFERENCE)]
        for row in differences.to_dict("records"):
            found.append(
                Finding(
                    f"{row['factor']} differs between {row['group']} and {row['reference']} within "
                    f"batches: {row['effect']:+.2f} standard deviations, q = {row['q_value']:.2g}."
                )
            )
    overall = tables.heldout[tables.heldout["group"] == EVERYONE]
    return found + [_compared(row) for row in overall.iloc[1:].to_dict("records")]


def _compared(row: Mapping[Any, Any]) -> Finding:
    gap, error = row["difference"], row["standard error"]
    better = None if not abs(gap) > 2 * error else gap > 0
    word = {True: "better than", False: "worse than", None: "about as well as"}[better]
    return Finding(
        f"The {OURS} predicts held-out samples {word} {row['model']}: {gap:+.1f} nats per sample "
        f"(standard error {error:.1f}).",
        better,
    )


def _data(cohort: Cohort) -> Section:
    design = cohort.design().rename_axis("disease").reset_index()
    text = f"{cohort.note}\n\n{cohort.confounding()}"
    return Section("The data", text, tables=[Table(design, "Samples by disease and batch.")])


def _factors(tables: PlateletTables, figures: Mapping[str, Figure]) -> Section:
    statuses = (FINDING, BATCH_ONLY, OWN_SAMPLES, FEW_SAMPLES, UNSTABLE)
    by = {name: tables.with_status(name) for name in statuses}
    lists = {name: ", ".join(factors) or "none" for name, factors in by.items()}
    text = (
        f"{len(by[FINDING])} of {len(tables.factors)} factors are findings: shared, and back in at "
        f"least {STABLE:.0%} of refits to parts of the samples. Stable, but of one disease only: "
        f"{lists[OWN_SAMPLES]}; factors of groups drawn at random are stable about as often, so "
        "that is no evidence about a disease. Carried by fewer than five samples: "
        f"{lists[FEW_SAMPLES]}. Set aside, because a part of "
        "their variance follows batches (p at most 0.05) and none is shown to follow disease "
        f"beyond them: {lists[BATCH_ONLY]}. Not stable: {lists[UNSTABLE]}."
    )
    shown = [figures[name] for name in ("effects", "activity", "stability") if name in figures]
    caption = (
        "Factors with the share of their variance that batch, disease and library size explain, "
        "alone and after the others; a factor of one disease is judged among its samples only. "
        "Healthy and ill are easily told apart in this series by any method: a factor that "
        "separates them is no evidence for the model."
    )
    extra = [] if tables.factors.empty else [Table(tables.factors, caption)]
    return Section("Factors", text, shown, extra)


def _contrasts(cohort: Cohort, tables: PlateletTables) -> Section:
    against = cohort.reference or "all others"
    text = (
        f"Scores of shared factors, each disease against {against}, compared within batches "
        "(van Elteren); where disease and batch cannot be told apart there is a refusal. Factors "
        "that are not stable are listed, but what is said of them is no finding."
    )
    contrasts = tables.contrasts
    shown = [] if contrasts.empty else [Table(contrasts, "Contrasts within batches.")]
    return Section("Differences between diseases", text, tables=shown)


def _gene_sets(tables: PlateletTables) -> list[Section]:
    if tables.enrichment.empty:
        return []
    best = tables.enrichment.head(SHOWN_SETS).drop(columns="genes")
    text = "Gene sets among the genes that stable factors move most, against all genes analysed."
    caption = f"The {len(best)} smallest of {len(tables.enrichment)} q-values up to 0.05."
    return [Section("Gene sets", text, tables=[Table(best, caption)])]


def _heldout(tables: PlateletTables, figures: Mapping[str, Figure]) -> Section:
    text = (
        "Log predictive density of held-out samples, factors integrated out: larger is better. "
        "The pooled model and factor analysis know neither diseases nor batches; the group means "
        "have no factors."
    )
    caption = f"Difference: {OURS} minus the model of the row, paired over samples."
    table = Table(tables.heldout.round(1), caption)
    return Section("Does it predict new samples?", text, [figures["variance"]], [table])


def _training(result: PlateletFit, figures: Mapping[str, Figure]) -> Section:
    mending, moves = result.mending, moves_in_words(result.mending)
    values = (*mending.blocks.objectives, *mending.codes.objectives[1:])
    objectives = ", ".join(f"{value:.1f}" for value in values)
    text = (
        f"Changes of the model after its fit: {'; '.join(moves) or 'none'}. Objective per sample "
        f"before and after the kept changes of blocks and codes: {objectives}; each beat an "
        "unchanged model that was trained as much longer, and so were the models compared above. "
        f"Shared factors that still vary threefold between diseases: "
        f"{', '.join(result.uneven) or 'none'}."
    )
    return Section("Training", text, [figures["training"]])


def _figures(cohort: Cohort, result: PlateletFit, tables: PlateletTables) -> dict[str, Figure]:
    """Pictures by the name of their file."""
    found, train = result.fitted.factors, result.fitted.train
    studies, names = list(train.study_names or ()), result.fitted.factor_names
    mark = f" {SYNTHETIC}." if cohort.synthetic else ""
    shown: dict[str, tuple[Any, str]] = {}
    if names:
        assert found.effects is not None
        genes = [str(gene) for gene in train.var_names]
        shown["effects"] = (
            plot_block_loadings(
                found.effects, names, found.block, studies, feature_names=genes, n_top=3
            ),
            "Decoded effect of every factor on its top genes, scaled to the largest of each.",
        )
        study = result.everyone.batch().study
        shown["activity"] = (
            plot_activity(found.scores, names, study, studies, found.block),
            "Scores of the factors by disease, all samples.",
        )
        shown["stability"] = (
            plot_stability(result.stability, studies, threshold=STABLE),
            "How factors come back in refits to 80 % of the training samples.",
        )
    shown["variance"] = (
        plot_variance_explained(tables.variance.shares, studies),
        "Share of the variance that shared and specific factors and noise have in every disease.",
    )
    history = result.fitted.restarts.histories[0]
    shown["training"] = training_curve(history), "Loss per sample in training and held-out samples."
    if cohort.synthetic:
        for picture, _ in shown.values():
            _mark_synthetic(picture)
    return {name: Figure(picture, caption + mark) for name, (picture, caption) in shown.items()}


def _mark_synthetic(picture: Any) -> None:
    _whole(picture).text(
        0.005, 0.005, SYNTHETIC, color="firebrick", fontsize=8, ha="left", va="bottom"
    )


def _save(path: Path, shown: Figure) -> Path:
    _whole(shown.figure).savefig(path, dpi=150)
    return path


def _whole(picture: Any) -> Any:
    """A figure, or that of axes."""
    return picture if hasattr(picture, "savefig") else picture.figure
