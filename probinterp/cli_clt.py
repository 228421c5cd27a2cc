"""``probinterp clt``: transcoders of vision towers, from images to a verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

clt = typer.Typer(
    help="Cross-layer transcoders of CLIP vision towers: record, fit, evaluate, report.",
    add_completion=False,
    no_args_is_help=True,
)

Seed = Annotated[int, typer.Option(help="Seed.", min=0, max=2**32 - 1)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Margin = Annotated[
    float,
    typer.Option(help="Largest loss of accuracy that counts as preserved, a share such as 0.01."),
]
DeclaredAfter = Annotated[
    bool, typer.Option("--declared-after", help="The margin was chosen after seeing the data.")
]
Templates = Annotated[
    list[str] | None, typer.Option(help="Prompt with {}, repeatable: 'a photo of a {}'.")
]
Train = Annotated[
    Path | None, typer.Option(help="Recording of the training images, for ridge and mean.")
]
Checks = Annotated[
    bool,
    typer.Option(help="Held-out predictive checks too; half of the images set the noise scales."),
]
Compare = Annotated[list[Path] | None, typer.Option(help="Other transcoder, repeatable.")]


@clt.command()
def record(
    backbone: Annotated[str, typer.Argument(help="tiny-clip, or a name open_clip knows.")],
    images: Annotated[str, typer.Argument(help="digits, or a folder of pictures by class.")],
    out: Annotated[Path, typer.Option(help="Folder for the recording.")] = Path("recording"),
    pretrained: Annotated[str | None, typer.Option(help="Weights: openai, or a file.")] = None,
    tokens: Annotated[str, typer.Option(help="all, cls or patch.")] = "all",
    store: Annotated[str, typer.Option(help="inputs, or both inputs and outputs.")] = "inputs",
    dtype: Annotated[str, typer.Option(help="float32, float16, bfloat16 or int8.")] = "float32",
    part: Annotated[str, typer.Option(help="Part of the digits: train or heldout.")] = "train",
    batch_size: Annotated[int, typer.Option(help="Images in one pass.", min=1)] = 64,
    as_json: AsJson = False,
) -> None:
    """Record what the MLPs of BACKBONE read and write on IMAGES."""
    from probinterp.jobs.clt import record_clt

    summary = record_clt(
        backbone,
        images,
        out,
        pretrained=pretrained,
        tokens=tokens,
        store=store,
        dtype=dtype,
        part=part,
        batch_size=batch_size,
        progress=not as_json,
    )
    text = (
        f"{summary['n_images']} images x {summary['tokens_per_image']} tokens, "
        f"{len(summary['layers'])} layers."
    )
    _done(as_json, summary, [text], [out])


@clt.command()
def fit(
    recording: Annotated[Path, typer.Argument(help="What `probinterp clt record` wrote.")],
    out: Annotated[Path, typer.Option(help="Folder for the model.")] = Path("clt"),
    activation: Annotated[
        str,
        typer.Option(
            help="relu-topk, abs-topk, jump-relu, bernoulli-gaussian, truncated-normal, "
            "hard-concrete."
        ),
    ] = "relu-topk",
    n_latents: Annotated[int, typer.Option(help="Latents of each layer.", min=2)] = 256,
    target_l0: Annotated[
        float, typer.Option("--target-l0", "--k", help="Active codes a token and layer.")
    ] = 16,
    sparsity: Annotated[
        float | None, typer.Option(help="Weight of the sparsity loss of jump-relu; default 1.")
    ] = None,
    per_layer: Annotated[
        bool, typer.Option("--per-layer", help="Latents write to their own layer alone.")
    ] = False,
    skip: Annotated[bool, typer.Option("--skip", help="Add a linear map of the inputs.")] = False,
    epochs: Annotated[int, typer.Option(help="Passes over the tokens.", min=1)] = 12,
    steps: Annotated[int | None, typer.Option(help="Steps, instead of epochs.", min=1)] = None,
    batch_size: Annotated[int, typer.Option(help="Tokens a step.", min=1)] = 512,
    learning_rate: Annotated[float, typer.Option(help="Learning rate of Adam.")] = 3e-3,
    seed: Seed = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Fit a transcoder to RECORDING. Ctrl-C ends the training early and keeps what was learned."""
    from probinterp.jobs.clt import fit_clt

    summary = fit_clt(
        recording,
        out,
        activation=activation,
        n_latents=n_latents,
        target_l0=target_l0,
        sparsity=sparsity,
        per_layer=per_layer,
        skip=skip,
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        device=device,
        progress=not as_json,
    )
    lines = [
        f"{summary['n_latents']} latents in each of {summary['n_layers']} layers, {activation}."
    ]
    lines.append(f"R2 of training tokens by layer: {_shown(summary['training_r2'], 3)}")
    if summary["active_codes"] is not None:
        lines.append(f"active codes a token: {_shown(summary['active_codes'], 1)}")
    _done(as_json, summary, lines, [out / "model", out / "summary.json"])


@clt.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="Folder of a saved transcoder.")],
    recording: Annotated[Path, typer.Argument(help="Recording of held-out images.")],
    margin: Margin,
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("evaluation"),
    declared_after: DeclaredAfter = False,
    template: Templates = None,
    train: Train = None,
    compare: Compare = None,
    keep: Annotated[int | None, typer.Option(help="Sources of the sufficiency test.")] = None,
    checks: Checks = True,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Put MODEL in its network's place and say whether it may stay."""
    _evaluated(
        model, recording, out, margin, declared_after, template, train, compare, keep, checks,
        seed, as_json, page=False,
    )  # fmt: skip


@clt.command()
def report(
    model: Annotated[Path, typer.Argument(help="Folder of a saved transcoder.")],
    recording: Annotated[Path, typer.Argument(help="Recording of held-out images.")],
    margin: Margin,
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("evaluation"),
    declared_after: DeclaredAfter = False,
    template: Templates = None,
    train: Train = None,
    compare: Compare = None,
    keep: Annotated[int | None, typer.Option(help="Sources of the sufficiency test.")] = None,
    checks: Checks = True,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Evaluate MODEL and write all of it as one HTML page with pictures."""
    _evaluated(
        model, recording, out, margin, declared_after, template, train, compare, keep, checks,
        seed, as_json, page=True,
    )  # fmt: skip


def _evaluated(
    model: Path,
    recording: Path,
    out: Path,
    margin: float,
    declared_after: bool,
    template: list[str] | None,
    train: Path | None,
    compare: list[Path] | None,
    keep: int | None,
    checks: bool,
    seed: int,
    as_json: bool,
    *,
    page: bool,
) -> None:
    from probinterp.jobs.clt import evaluate_clt
    from probinterp.jobs.clt_checks import check_sentence

    summary, table = evaluate_clt(
        model,
        recording,
        out,
        margin=margin,
        declared_after=declared_after,
        templates=template or (),
        train=train,
        compare=compare or (),
        kept=keep,
        checks=checks,
        seed=seed,
        page=page,
    )
    lines = [table.to_string(index=False, float_format="{:.4f}".format), ""]
    lines += [
        f"{name}, {summary['primary']}: {v['statement']}" for name, v in summary["verdicts"].items()
    ]
    lines += [check_sentence(name, found) for name, found in (summary["checks"] or {}).items()]
    lines += [summary["sufficiency"], summary["floor"]]
    names = ["evaluation.json", "replacement.csv", "reconstruction.csv", "records"]
    names += ["checks.csv"] * (summary["checks"] is not None) + ["report.html"] * page
    _done(as_json, summary, lines, [out / n for n in names])


def _shown(values: list[float], digits: int) -> str:
    return " ".join(f"{value:.{digits}f}" for value in values)


def _done(as_json: bool, summary: dict[str, Any], lines: list[str], written: list[Path]) -> None:
    """Print the summary as JSON, or lines of text and the list of what was written."""
    if as_json:
        document = summary | {"written": [str(path) for path in written]}
        print(json.dumps(document, indent=2, allow_nan=False))
        return
    print("\n".join([*lines, *(f"wrote {path}" for path in written)]))
