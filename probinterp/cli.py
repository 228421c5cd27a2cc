"""The ``probinterp`` command: thin, it calls the public API and says where it wrote what."""

from __future__ import annotations

import platform
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from probinterp.cli_clt import clt
from probinterp.cli_demo import run_demos
from probinterp.cli_text import (
    checks_text,
    finish,
    number,
    package_version,
    speaker,
    top_genes_lines,
    tree,
)

FAILED, BAD_INPUT = 1, 2
INTERRUPTED = 130  # what newer versions of typer make of Ctrl-C; older ones abort
INPUT_ERRORS = (
    ValueError,
    KeyError,
    TypeError,
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
# typer bundles click or imports it, and does not name the base class of wrong usage itself
WrongUsage: type[Any] = typer.BadParameter.__mro__[2]
# as Python spells them
OPTIONS = {"layer=...": "--layer", "counts=False": "--values", "study_key=...": "--study-key"}

app = typer.Typer(
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(clt, name="clt")

Out = Annotated[Path, typer.Option(help="Directory to write to; made if needed.")]
Seed = Annotated[int, typer.Option(help="Seed of split, fit and checks.", min=0, max=2**32 - 1)]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Discrepancies = Annotated[
    list[str] | None,
    typer.Option(help="Check to run, repeatable: zero_fraction, 'quantile(0.9)', ..."),
]
AllCells = Annotated[
    bool, typer.Option("--all-cells", help="Check all cells: the fit has seen none of them.")
]
Cap = Annotated[
    bool,
    typer.Option(
        "--cap",
        help="At most a tenth as many cells as the fit had: honest p-values, less power.",
    ),
]
Draws = Annotated[int, typer.Option(help="Replicated data sets a check.", min=2)]


class DemoData(StrEnum):
    """What `probinterp demo` can analyse."""

    CELLS = "cells"
    PLATELETS = "platelets"
    VISION = "vision"


@app.callback()
def start(context: typer.Context) -> None:
    """Sparse latent-variable models, what they found, and whether to believe it."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def demo(
    data: Annotated[
        DemoData | None, typer.Argument(help="What to analyse; default cells, then vision.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Directory to write to; default demo, platelets or vision."),
    ] = None,
    path: Annotated[
        Path | None,
        typer.Option(help="Platelets: the series GSE68086; default PROBINTERP_DATA, or synthetic."),
    ] = None,
    gene_sets: Annotated[
        Path | None, typer.Option(help="Platelets: folder of GMT files; default PROBINTERP_DATA.")
    ] = None,
    refits: Annotated[int, typer.Option(help="Platelets: refits for stability.", min=1)] = 3,
    max_epochs: Annotated[int | None, typer.Option(help="Longest training.", min=1)] = None,
    seed: Seed = 0,
    device: Device = "auto",
    draws: Draws = 200,
    as_json: AsJson = False,
) -> None:
    """Fit to real data, compare and check, write a report; alone: `cells` and `vision`.

    `cells`: sparse VAEs of blood cells of one study, which come with scanpy. `platelets`: of
    platelet RNA of several diseases. `vision`: proxies of the MLPs of a CLIP for handwritten
    digits. Both demonstrations together write into `cells` and `vision` in the directory.
    """
    if data is not DemoData.PLATELETS and (path is not None or gene_sets is not None):
        raise ValueError("--path and --gene-sets are for `probinterp demo platelets`.")
    run_demos(
        None if data is None else data.value,
        out,
        seed=seed,
        device=device,
        draws=draws,
        max_epochs=max_epochs,
        platelets={"path": path, "gene_sets": gene_sets, "n_seeds": refits},
        as_json=as_json,
    )


@app.command()
def fit(
    file: Annotated[Path, typer.Argument(help="AnnData file, .h5ad.")],
    out: Out = Path("fit"),
    layer: Annotated[str | None, typer.Option(help="Layer to read; default X.")] = None,
    values: Annotated[
        bool, typer.Option("--values", help="The matrix holds normalised values, not counts.")
    ] = False,
    size_factor_key: Annotated[
        str | None, typer.Option(help="obs column of total counts; default row sums.")
    ] = None,
    study_key: Annotated[
        str | None,
        typer.Option(help="obs column of studies: factors shared by all, and of each study."),
    ] = None,
    batch_key: Annotated[
        str | None, typer.Option(help="obs column of technical batches to take out.")
    ] = None,
    stratify: Annotated[
        str | None, typer.Option(help="obs column to stratify the split by; default studies.")
    ] = None,
    groups: Annotated[str | None, typer.Option(help="obs column to hold out as a whole.")] = None,
    heldout: Annotated[float, typer.Option(help="Share of cells to hold out.")] = 0.2,
    factors: Annotated[int, typer.Option(help="Number of factors.")] = 10,
    shared: Annotated[
        int | None, typer.Option(help="Factors that all studies share; default --factors.")
    ] = None,
    specific: Annotated[
        int | None, typer.Option(help="Factors of each study alone; default 3.")
    ] = None,
    hidden: Annotated[int, typer.Option(help="Width of the networks.")] = 64,
    spike: Annotated[
        float | None, typer.Option(help="Rate of the spike; default by cells.")
    ] = None,
    slab: Annotated[float | None, typer.Option(help="Rate of the slab; default by cells.")] = None,
    epochs: Annotated[int, typer.Option(help="Longest training.")] = 150,
    batch_size: Annotated[int, typer.Option(help="Cells a step.")] = 64,
    learning_rate: Annotated[float, typer.Option(help="Learning rate of Adam.")] = 1e-2,
    restarts: Annotated[int, typer.Option(help="Fits; the best one is kept.")] = 1,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Fit a sparse VAE to FILE and write its factors back; with --study-key a multi-study one.

    Ctrl-C ends the training early and keeps what was learned.
    """
    from probinterp.jobs import fit_file

    summary = fit_file(
        file,
        out,
        layer=layer,
        counts=not values,
        size_factor_key=size_factor_key,
        study_key=study_key,
        batch_key=batch_key,
        stratify=stratify,
        groups=groups,
        heldout=heldout,
        n_factors=factors,
        n_shared=shared,
        n_specific=specific,
        n_hidden=hidden,
        spike=spike,
        slab=slab,
        max_epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        restarts=restarts,
        seed=seed,
        device=device,
        progress=not as_json,
    )
    say = speaker(as_json)
    say(
        f"{summary['n_factors']} factors of {summary['n_genes']} genes from {summary['n_train']} "
        f"cells in {summary['epochs']} epochs ({summary['stopped'].replace('_', ' ')}).\n"
        f"Held-out log predictive density: {number(summary['heldout_log_density_per_cell'])} "
        f"nats per cell, {summary['n_heldout']} cells."
    )
    for study, density in summary.get("heldout_log_density_per_study", {}).items():
        say(f"  {study}: {number(density)} nats per cell")
    say("Top genes (- falls as the score rises):")
    say("\n".join(top_genes_lines(summary)))
    finish(as_json, summary, [out / n for n in ("model", "adata.h5ad", "summary.json")])


@app.command()
def check(
    model: Annotated[
        Path, typer.Argument(help="Directory of a saved model, or an ArviZ file (.nc, .zarr).")
    ],
    file: Annotated[
        Path | None,
        typer.Argument(help="Held-out data: .h5ad for a model; also .npy, .csv, .tsv for ArviZ."),
    ] = None,
    out: Out = Path("check"),
    discrepancy: Discrepancies = None,
    all_cells: AllCells = False,
    cap: Cap = False,
    draws: Draws = 200,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Check MODEL on held-out data that it has not seen."""
    from probinterp.jobs import check_file

    checked, summary = check_file(
        model,
        file,
        out,
        checks=discrepancy or (),
        all_cells=all_cells,
        cap=cap,
        n_draws=draws,
        seed=seed,
        progress=not as_json,
    )
    say = speaker(as_json)
    first = next(iter(checked.results.values()))
    say(f"{first.n_new} units against {first.n_draws} replicated data sets:\n")
    say(checks_text(checked.table().to_dict("records")))
    say("")
    for verdict in checked.verdicts():
        say(str(verdict))
    for note in checked.notes():
        say(f"Note: {note}")
    finish(as_json, summary, [out / name for name in ("check.json", "genes.csv", "report.html")])


@app.command()
def compare(
    models: Annotated[list[Path], typer.Argument(help="Saved models or ArviZ files, two or more.")],
    data: Annotated[
        Path | None, typer.Option(help="Held-out data, the same for all, as for check.")
    ] = None,
    out: Out = Path("compare"),
    score: Annotated[
        str | None, typer.Option(help="log or crps; default log where every model has a density.")
    ] = None,
    discrepancy: Discrepancies = None,
    all_cells: AllCells = False,
    draws: Draws = 200,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Rank MODELS by a held-out score and show their checks side by side."""
    from probinterp.jobs import compare_files

    found, summary = compare_files(
        models,
        data,
        out,
        score=score,
        checks=discrepancy or (),
        all_cells=all_cells,
        n_draws=draws,
        seed=seed,
        progress=not as_json,
    )
    say = speaker(as_json)
    say(found.score_table().to_string(index=False, float_format="{:.3f}".format))
    say(f"\n{found.scores.statement}\n")
    say("Effect sizes of the checks; * misfit, ? no verdict:")
    say(found.check_table().to_string(index=False))
    finish(as_json, summary, [out / name for name in ("compare.json", "report.html")])


@app.command()
def report(
    directory: Annotated[Path, typer.Argument(help="What `probinterp fit` wrote.")],
    group_key: Annotated[str | None, typer.Option(help="obs column of cell groups.")] = None,
    draws: Draws = 200,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Check the model in DIRECTORY and write DIRECTORY/report.html."""
    from probinterp.jobs import report_directory

    path = report_directory(
        directory, group_key=group_key, n_draws=draws, seed=seed, progress=not as_json
    )
    finish(as_json, {"report": str(path)}, [path])


@app.command()
def info(
    model: Annotated[Path | None, typer.Argument(help="Directory of a saved model.")] = None,
    as_json: AsJson = False,
) -> None:
    """Versions and devices, or what a saved model is."""
    import torch

    from probinterp.inference import read_config

    if model is not None:
        found: dict[str, Any] = read_config(model)
    else:
        names = ("probinterp", "torch", "pyro-ppl", "anndata", "scanpy", "arviz")
        found = {name: package_version(name) for name in names}
        found |= {
            "python": platform.python_version(),
            "cuda": torch.cuda.is_available(),
            "threads": torch.get_num_threads(),
        }
    speaker(as_json)("\n".join(tree(found)))
    finish(as_json, found, [])


def main() -> None:
    """Run the command; exit with 0 (done), 1 (failed) or 2 (bad input)."""
    try:
        code = app(prog_name="probinterp", standalone_mode=False)
        if code == INTERRUPTED:
            code = _complain("interrupted", FAILED)
    except (typer.Abort, KeyboardInterrupt):
        code = _complain("interrupted", FAILED)
    except WrongUsage as error:
        command = error.ctx.command_path if error.ctx else "probinterp"
        code = _complain(f"{error.format_message()} (see {command} --help)", BAD_INPUT)
    except INPUT_ERRORS as error:
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        code = _complain(str(text), BAD_INPUT)
    except Exception as error:  # noqa: BLE001 - a command ends with one line, not a traceback
        code = _complain(f"{type(error).__name__}: {error}", FAILED)
    sys.exit(code if isinstance(code, int) else 0)


def _complain(text: str, code: int) -> int:
    for python, option in OPTIONS.items():
        text = text.replace(python, option)
    print(f"probinterp: {' '.join(text.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
