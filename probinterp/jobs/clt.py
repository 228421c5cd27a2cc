"""Transcoders from files to files: what ``probinterp clt`` offers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from probinterp.criticism.comparison import Record
from probinterp.inference import reconstruction_statistics, save
from probinterp.jobs.check_pages import versions
from probinterp.jobs.clt_checks import check_on_heldout, flagged_discrepancies
from probinterp.jobs.clt_code_checks import check_codes, is_uncertain
from probinterp.jobs.clt_evaluation import (
    Faithfulness,
    ProxyEvaluation,
    Task,
    evaluate_faithfulness,
    evaluate_proxy,
    reconstruction_rows,
    replacement_rows,
    window_label,
)
from probinterp.jobs.clt_fitting import codeless_proxies, fit_transcoder, make_transcoder
from probinterp.jobs.clt_pages import choose_cards, write_clt_page
from probinterp.jobs.clt_sources import (
    DIGITS,
    SOURCE,
    Pictures,
    backbone_of,
    image_arguments,
    named,
    open_recording,
    open_transcoder,
    proxy_names,
    require_fitting,
    task_of,
)
from probinterp.jobs.fitting import output_folder, write_json
from probinterp.models import CrossLayerTranscoder
from probinterp.vision import (
    ActivationData,
    record_activations,
)
from probinterp.vision.hashes import weight_hash
from probinterp.vision.image_source import image_source

QUALITY = 4096  # training tokens that say how good a fit is
UNCHECKED = ("mean", "identity")  # neither claims to know its errors
DTYPES = ("float32", "float16", "bfloat16", "int8")


def record_clt(
    backbone: str,
    images: str,
    out: str | Path,
    *,
    pretrained: str | None = None,
    tokens: str = "all",
    store: str = "inputs",
    dtype: str = "float32",
    part: str = "train",
    batch_size: int = 64,
    progress: bool = True,
) -> dict[str, Any]:
    """Record what the MLPs of a tower do on images, into a folder.

    Parameters
    ----------
    backbone, pretrained
        ``"tiny-clip"``, or name and weights as open_clip knows them.
    images
        ``"digits"``, or a folder of pictures with classes as subfolders.
    out
        Folder for the recording; an interrupted one goes on.
    tokens, store, dtype, batch_size, progress
        As for :func:`probinterp.vision.record_activations`.
    part
        Part of the digits: ``"train"`` or ``"heldout"``.

    Raises
    ------
    ValueError
        If an option is unknown.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    folder = output_folder(out)
    data = record_activations(
        backbone_of(backbone, pretrained),
        path=folder,
        tokens=tokens,
        store=store,
        dtype=getattr(torch, dtype),
        batch_size=batch_size,
        progress=progress,
        **image_arguments(images, part, backbone, pretrained),
    )
    where = images if images == DIGITS else str(Path(images).resolve())
    source = {"backbone": backbone, "pretrained": pretrained, "images": where, "part": part}
    write_json(folder / SOURCE, source)
    return source | {
        "n_images": data.n_images,
        "tokens_per_image": data.n_tokens,
        "layers": list(data.layers),
        "hook_names": list(data.manifest["backbone"]["hook_names"]),
    }


def fit_clt(
    recording: str | Path,
    out: str | Path,
    *,
    activation: str = "relu-topk",
    n_latents: int = 256,
    target_l0: float = 16,
    sparsity: float | None = None,
    per_layer: bool = False,
    skip: bool = False,
    epochs: int = 12,
    steps: int | None = None,
    batch_size: int = 512,
    learning_rate: float = 3e-3,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> dict[str, Any]:
    """Fit a transcoder to a recording and save it as ``out/model``.

    Parameters
    ----------
    recording
        Folder that :func:`record_clt` wrote.
    out
        Folder for ``model/`` and ``summary.json``.
    activation, n_latents, target_l0, sparsity, per_layer, skip
        See :func:`~probinterp.jobs.clt_fitting.make_transcoder`.
    epochs, steps, batch_size, learning_rate, seed, device, progress
        See :func:`~probinterp.jobs.clt_fitting.fit_transcoder`.
    """
    folder = output_folder(out)
    data, source = open_recording(recording)
    clt = make_transcoder(
        data,
        activation=activation,
        n_latents=n_latents,
        target_l0=target_l0,
        sparsity=sparsity,
        per_layer=per_layer,
        skip=skip,
        seed=seed,
    )
    history = fit_transcoder(
        clt,
        data,
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        device=device,
        progress=progress,
    )
    clt.metadata = clt.metadata | {"source": source}
    save(clt, folder / "model", history, overwrite=True)
    some = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:QUALITY]
    quality = reconstruction_statistics(clt.eval(), data.batch(some.sort().values))
    active = quality.l0()
    summary = {
        "activation": activation,
        "n_layers": clt.n_layers,
        "n_latents": n_latents,
        "target_l0": target_l0,
        "sparsity": sparsity,
        "cross_layer": clt.cross_layer,
        "skip": skip,
        "n_images": data.n_images,
        "epochs": len(history.records),
        "stopped": history.stopped,
        "training_r2": [round(value, 4) for value in quality.r2().tolist()],
        "active_codes": None if active is None else [round(v, 2) for v in active.tolist()],
        "recording": str(recording),
    }
    return dict(write_json(folder / "summary.json", summary))


def evaluate_clt(
    model: str | Path,
    recording: str | Path,
    out: str | Path,
    *,
    margin: float,
    declared_after: bool = False,
    templates: Sequence[str] = (),
    train: str | Path | None = None,
    compare: Sequence[str | Path] = (),
    kept: int | None = None,
    checks: bool = True,
    seed: int = 0,
    page: bool = True,
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Put a transcoder in its network's place on held-out images and judge it.

    Parameters
    ----------
    model
        Folder of a saved transcoder.
    recording
        Recording of held-out images with classes.
    out
        Folder for ``records/``, CSV tables, ``evaluation.json`` and ``report.html``.
    margin
        Largest loss of accuracy that counts as preserved, as a share; it has no default.
    declared_after
        Say that the margin was chosen after the data were seen.
    templates
        Prompts with ``{}``; default: those of the digits, or "a photo of a {}".
    train
        Recording of the training images, for ridge regression and mean as baselines; the
        identity is always there.
    compare
        Folders of other transcoders, such as a per-layer one.
    kept
        Sources of the sufficiency test.
    checks
        Also make held-out predictive checks of the transcoders and the ridge regression, with the
        residual covariance of one half of the images; needs 20 of them.
    seed
        Seed of the bootstraps.
    page
        Write ``report.html`` too.

    Raises
    ------
    TowerMismatchError
        If a transcoder was made for another tower.
    ValueError
        If the margin is impossible or images have no classes.
    """
    if not 0 < margin < 1:
        raise ValueError(f"margin must be a share between 0 and 1, such as 0.01, got {margin:g}.")
    started, now = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
    folder = output_folder(out)
    clt = open_transcoder(model)
    data, source = open_recording(recording)
    require_fitting(clt, model, data, recording, source)
    task = task_of(data, source, templates)
    proxies = _proxies(clt, model, compare, train, (data, recording, source), task)
    declared: Any = "after" if declared_after else "before"
    found = {
        name: evaluate_proxy(proxy, task, margin=margin, declared=declared, seed=seed)
        for name, proxy in proxies.items()
    }
    faithfulness = evaluate_faithfulness(clt, task, kept=kept, seed=seed)
    table = pd.DataFrame(replacement_rows(found))
    table.to_csv(folder / "replacement.csv", index=False)
    pd.DataFrame(reconstruction_rows(found)).to_csv(folder / "reconstruction.csv", index=False)
    checked, codes_of = None, {}
    if checks:
        codes_of = {n: check_codes(p, task, seed) for n, p in proxies.items() if is_uncertain(p)}
        made = {n: p for n, p in proxies.items() if n not in UNCHECKED}
        checked = check_on_heldout(made, data, task.tower.grid, seed)
    if checked is not None:
        checked.to_csv(folder / "checks.csv", index=False)
    first = next(iter(found.values()))
    seconds = time.perf_counter() - started
    _write_records(folder, first, task, source, clt, (declared, now), seed, seconds)
    summary = {
        "model": str(model),
        "images": source["images"],
        "n_images": data.n_images,
        "margin": margin,
        "margin_declared": declared,
        "floor": str(task.floor),
        "checks": None if checked is None else flagged_discrepancies(checked),
        "drift": {name: each.drift for name, each in codes_of.items()},
        **_found(found, faithfulness),
    }
    if page:
        shown = image_source(**image_arguments(source["images"], source["part"], *named(source)))
        write_clt_page(
            folder / "report.html",
            found,
            faithfulness,
            choose_cards(clt, data, Pictures(shown)) if "patch" in first.reconstruction else (),
            title=f"{next(iter(found))} in the place of the MLPs of {source['backbone']}",
            margin=margin,
            settings={"seed": seed, "model": str(model), "images": source["images"]},
            class_names=task.class_names,
            checks=checked,
            codes=codes_of,
        )
    return write_json(folder / "evaluation.json", summary), table


def _write_records(
    folder: Path,
    found: ProxyEvaluation,
    task: Task,
    source: dict[str, Any],
    clt: CrossLayerTranscoder,
    declared: tuple[Any, str],
    seed: int,
    seconds: float,
) -> None:
    """One JSON record a window and token type that reaches the embedding."""
    records = output_folder(folder / "records")
    network, backbone = found.replacement.network, task.tower.record()
    weights = weight_hash(clt)
    for number, window in enumerate(w for w in found.replacement.windows if w.visible):
        label = window_label(window.layers, window.tokens)
        judged, compared = found.verdicts[label], found.comparisons[label]
        alone = label == found.primary
        Record(
            backbone=backbone,
            hook_names=backbone["hook_names"],
            proxy_hash=weights,
            dataset=source["images"],
            split=source["part"],
            image_hash=network.image_hash,
            template_hash=network.template_hash,
            preprocess_hash=network.preprocess_hash or "none",
            tokens=window.tokens,
            window=window.layers,
            cells=compared.cells,
            margin=judged.margin_test.margin,
            margin_declared=declared[0],
            margin_declared_at=declared[1],
            family="main comparison" if alone else found.family.name,
            correction="none" if alone else found.family.correction,
            seeds={"bootstrap": seed},
            wall_time=seconds,
            versions={name: str(value) for name, value in versions().items()},
            numbers=compared.numbers() | {"verdict": judged.numbers()},
        ).to_json(records / f"{number:02d}.json")


def _proxies(
    clt: CrossLayerTranscoder,
    model: str | Path,
    compare: Sequence[str | Path],
    train: str | Path | None,
    recorded: tuple[ActivationData, str | Path, dict[str, Any]],
    task: Task,
) -> dict[str, Any]:
    """What is judged, by name: the transcoder first, those to compare it with, the baselines."""
    data, recording, source = recorded
    name, *others = proxy_names([model, *compare])
    proxies: dict[str, Any] = {name: clt}
    for other_name, other in zip(others, compare, strict=True):
        proxies[other_name] = open_transcoder(other)
        require_fitting(proxies[other_name], other, data, recording, source)
    known = data if train is None else open_recording(train)[0]
    if known.manifest["tokens"] != data.manifest["tokens"]:
        raise ValueError(
            f"{train} has {known.manifest['tokens']} tokens, {recording} "
            f"{data.manifest['tokens']}: record both with the same --tokens."
        )
    baselines = codeless_proxies(known, task.tower)
    return proxies | (baselines if train is not None else {"identity": baselines["identity"]})


def _found(found: Mapping[str, ProxyEvaluation], faithfulness: Faithfulness) -> dict[str, Any]:
    """Verdicts, and the sources of the first proxy, as plain numbers."""
    first = next(iter(found.values()))
    return {
        "accuracy_network": first.replacement.network.accuracy,
        "primary": first.primary,
        "verdicts": {name: e.verdict.numbers() for name, e in found.items()},
        "windows": {label: v.numbers() for label, v in first.verdicts.items()},
        "order": list(faithfulness.order),
        "sufficiency": str(faithfulness.rank),
        "contributions": {
            kind: scores.matrix.tolist() for kind, scores in faithfulness.contributions.items()
        },
    }
