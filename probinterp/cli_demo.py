"""The demonstrations: cells, platelets and a vision tower, and what is printed of them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from probinterp.cli_text import checks_text, factors_text, finish, speaker

FOLDER = Path("demo")

Written = tuple[dict[str, Any], list[Path]]


def run_demos(
    data: str | None,
    out: Path | None,
    *,
    seed: int,
    device: str,
    draws: int,
    max_epochs: int | None,
    platelets: dict[str, Any],
    as_json: bool,
) -> None:
    """Run the demonstration of that name, or those of cells and vision one after the other."""
    options: dict[str, Any] = {"seed": seed, "device": device, "progress": not as_json}
    longest = {} if max_epochs is None else {"max_epochs": max_epochs}
    passes = {} if max_epochs is None else {"epochs": max_epochs}
    say = speaker(as_json)
    if data == "platelets":
        found = _platelets(out or Path("platelets"), say, options | longest | platelets)
    elif data == "cells":
        found = _cells(out or FOLDER / "cells", say, options | longest | {"n_draws": draws})
    elif data == "vision":
        found = _vision(out or FOLDER / "vision", say, options | passes)
    else:
        found = _both(out or FOLDER, say, options, longest | {"n_draws": draws}, passes)
    finish(as_json, *found)


def _both(
    out: Path, say: Any, options: dict[str, Any], cells: dict[str, Any], vision: dict[str, Any]
) -> Written:
    from probinterp.jobs.fitting import output_folder

    output_folder(out)
    first, written = _cells(out / "cells", say, options | cells)
    say("")
    if find_spec("open_clip") is None:
        say("The demonstration of vision needs open_clip: pip install 'probinterp[vision]'.")
        return {"cells": first, "vision": None}, written
    second, also = _vision(out / "vision", say, options | vision)
    return {"cells": first, "vision": second}, written + also


def _cells(out: Path, say: Any, options: dict[str, Any]) -> Written:
    from probinterp.jobs import run_demo

    say("Fitting 560 of 700 blood cells (10x PBMC 68k, 765 genes); 140 cells are held out.")
    summary, table, comparison = run_demo(out, **options)
    say(factors_text(table))
    say("Held-out log predictive density, nats per cell: larger is better.")
    say("Difference: sparse VAE minus the model of the row, paired over cells.")
    say(comparison.to_string(index=False, float_format="{:.2f}".format))
    for name, rows in summary["checks"].items():
        say(f"\nPredictive checks of the {name} on held-out cells:")
        say(checks_text(rows))
    return summary, [out / n for n in ("report.html", "adata.h5ad", "model", "summary.json")]


def _platelets(out: Path, say: Any, options: dict[str, Any]) -> Written:
    from probinterp.jobs import run_platelets

    summary, tables = run_platelets(out, **options)
    say(f"{summary['data']}\n{summary['note']}\n{summary['confounding']}\n")
    say(f"Factors that come back in refits: {', '.join(summary['findings']) or 'none'}")
    say(f"Explained by batch: {', '.join(summary['explained_by_batch']) or 'none'}")
    say(f"Not stable: {', '.join(summary['not_stable']) or 'none'}\n")
    say("Held-out log predictive density, nats per sample: larger is better.")
    say("Difference: the multi-study model minus the model of the row, paired over samples.")
    say(tables.heldout.to_string(index=False, float_format="{:.1f}".format))
    return summary, [out / name for name in summary["files"]]


def _vision(out: Path, say: Any, options: dict[str, Any]) -> Written:
    from probinterp.jobs.clt_checks import check_sentence
    from probinterp.jobs.fitting import output_folder
    from probinterp.jobs.vision_demo import run_vision_demo

    output_folder(out)
    say("Fitting proxies of the MLPs of a CLIP for handwritten digits; 397 images are held out.")
    summary, tables = run_vision_demo(out, **options)
    say(f"The network recognises {100 * summary['accuracy_network']:.1f} % of them.")
    say(
        "Change of accuracy with all MLPs replaced; verdicts corrected over the windows of a proxy."
    )
    table, whole = tables.replacement, summary["primary"].partition(",")[0]
    shown = ["proxy", "window", "accuracy", "change", "low", "high", "verdict"]
    rows = table.loc[table["window"].str.startswith(f"{whole},"), shown]
    say(rows.to_string(index=False, float_format="{:.4f}".format))
    say(f"All {len(table)} windows: replacement.csv.")
    say(f"\nMain comparison of each proxy ({summary['primary']}), margin declared before:")
    for name, judged in summary["verdicts"].items():
        say(f"{name}: {judged['statement']}")
    for name, flagged in summary["checks"].items():
        say(check_sentence(name, flagged))
    say(f"The size of the dictionary was {summary['settings']['size of the dictionary']}.")
    names = ["report.html", "model", *(f"{table}.csv" for table in tables._fields), "summary.json"]
    return summary, [out / name for name in names]
