"""The ``probinterp`` command: thin, it calls the public API and says where it wrote what."""

from __future__ import annotations

import json
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import click
import typer

FAILED, BAD_INPUT = 1, 2
INPUT_ERRORS = (ValueError, KeyError, TypeError, OSError)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Sparse latent-variable models, what they found, and whether to believe it.",
)

Out = Annotated[Path, typer.Option(help="Directory to write to; made if needed.")]
Seed = Annotated[int, typer.Option(help="Seed of split, fit and checks.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Draws = Annotated[int, typer.Option(help="Replicated data sets a check.")]


@app.command()
def demo(
    out: Out = Path("demo"),
    seed: Seed = 0,
    device: Device = "auto",
    draws: Draws = 200,
    as_json: AsJson = False,
) -> None:
    """Fit the sparse VAE and factor analysis to real blood cells, check both, write a report."""
    from probinterp.jobs import run_demo

    say = _speaker(as_json)
    say("Fitting 560 of 700 blood cells (10x PBMC 68k, 765 genes); 140 cells are held out.")
    summary, table, comparison = run_demo(
        out, seed=seed, device=device, n_draws=draws, progress=not as_json
    )
    say(_factors_text(table))
    say("Held-out log predictive density, nats per cell (larger is better):")
    say(comparison.to_string(index=False, float_format="{:.2f}".format))
    for name, rows in summary["checks"].items():
        say(f"\nPredictive checks of the {name} on held-out cells:")
        say("\n".join(_check_text(row) for row in rows))
    _finish(
        as_json, summary, [out / n for n in ("report.html", "adata.h5ad", "model", "summary.json")]
    )


@app.command()
def fit(
    file: Annotated[Path, typer.Argument(help="AnnData file, .h5ad.")],
    out: Out = Path("fit"),
    layer: Annotated[str | None, typer.Option(help="Layer to read; default X.")] = None,
    values: Annotated[
        bool, typer.Option("--values", help="Normalised values, not counts.")
    ] = False,
    size_factor_key: Annotated[str | None, typer.Option(help="obs column of total counts.")] = None,
    stratify: Annotated[
        str | None, typer.Option(help="obs column to stratify the split by.")
    ] = None,
    groups: Annotated[str | None, typer.Option(help="obs column to hold out as a whole.")] = None,
    heldout: Annotated[float, typer.Option(help="Share of cells to hold out.")] = 0.2,
    factors: Annotated[int, typer.Option(help="Number of factors.")] = 10,
    hidden: Annotated[int, typer.Option(help="Width of the networks.")] = 64,
    spike: Annotated[float | None, typer.Option(help="Rate of the spike; default by N.")] = None,
    slab: Annotated[float | None, typer.Option(help="Rate of the slab; default by N.")] = None,
    epochs: Annotated[int, typer.Option(help="Longest training.")] = 150,
    batch_size: Annotated[int, typer.Option(help="Cells a step.")] = 64,
    learning_rate: Annotated[float, typer.Option(help="Learning rate of Adam.")] = 1e-2,
    restarts: Annotated[int, typer.Option(help="Fits; the best one is kept.")] = 1,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Fit a sparse VAE to FILE and write its factors back."""
    from probinterp.jobs import fit_file

    summary = fit_file(
        file,
        out,
        layer=layer,
        counts=not values,
        size_factor_key=size_factor_key,
        stratify=stratify,
        groups=groups,
        heldout=heldout,
        n_factors=factors,
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
    say = _speaker(as_json)
    say(
        f"{summary['n_factors']} factors of {summary['n_genes']} genes from {summary['n_train']} "
        f"cells in {summary['epochs']} epochs ({summary['stopped']}); "
        f"{summary['heldout_log_density_per_cell']:.2f} nats per held-out cell."
    )
    for name, genes in summary["top_genes"].items():
        say(f"  {name}: {', '.join(genes)}")
    _finish(as_json, summary, [out / n for n in ("model", "adata.h5ad", "summary.json")])


@app.command()
def check(
    model: Annotated[Path, typer.Argument(help="Directory of a saved model.")],
    file: Annotated[Path, typer.Argument(help="AnnData file with held-out cells, .h5ad.")],
    out: Out = Path("check"),
    all_cells: Annotated[
        bool, typer.Option("--all-cells", help="Check all cells: the fit has seen none of them.")
    ] = False,
    draws: Draws = 200,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Check MODEL on the held-out cells of FILE."""
    from probinterp.jobs import check_file

    checked, summary = check_file(model, file, out, all_cells=all_cells, n_draws=draws, seed=seed)
    say = _speaker(as_json)
    for result in checked.results.values():
        say(result.verdict(0.05))
    for note in sorted({note for result in checked.results.values() for note in result.notes}):
        say(f"Note: {note}")
    _finish(as_json, summary, [out / "check.json", out / "genes.csv"])


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

    path = report_directory(directory, group_key=group_key, n_draws=draws, seed=seed)
    _finish(as_json, {"report": str(path)}, [path])


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
        found = {name: _version(name) for name in names}
        found |= {
            "python": platform.python_version(),
            "cuda": torch.cuda.is_available(),
            "threads": torch.get_num_threads(),
        }
    say = _speaker(as_json)
    for name, value in found.items():
        say(f"{name}: {value}")
    _finish(as_json, found, [])


def main() -> None:
    """Run the command; exit with 0 (done), 1 (failed) or 2 (bad input)."""
    try:
        code = app(standalone_mode=False)
    except click.exceptions.Abort:
        code = _complain("interrupted", FAILED)
    except click.ClickException as error:
        error.show()
        code = BAD_INPUT
    except INPUT_ERRORS as error:
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        code = _complain(str(text), BAD_INPUT)
    except Exception as error:  # noqa: BLE001 - a command ends with one line, not a traceback
        code = _complain(f"{type(error).__name__}: {error}", FAILED)
    sys.exit(code if isinstance(code, int) else 0)


def _complain(text: str, code: int) -> int:
    print(f"probinterp: {text}", file=sys.stderr)
    return code


def _speaker(as_json: bool) -> Any:
    return (lambda text: None) if as_json else print


def _finish(as_json: bool, summary: dict[str, Any], written: list[Path]) -> None:
    """Print the summary as JSON, or the list of what was written."""
    if as_json:
        print(json.dumps(summary | {"written": [str(path) for path in written]}, indent=2))
        return
    for path in written:
        print(f"wrote {path}")


def _factors_text(table: Any) -> str:
    lines = [f"\n{'factor':<10} {'marks':<32} {'AUC':>4}  top genes (- falls as the score rises)"]
    lines += [
        f"{row['factor']:<10} {row['marks']:<32} {row['AUC']:4.2f}  {row['top genes']}"
        for row in table.to_dict("records")
    ]
    return "\n".join([*lines, ""])


def _check_text(row: dict[str, Any]) -> str:
    return f"  {row['check']:<32} z {row['z']:+7.2f}   p {row['p']:.3f}   misfit: {row['misfit']}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
