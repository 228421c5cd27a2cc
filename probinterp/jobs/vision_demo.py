"""The demonstration of a vision tower: a real CLIP on digits, proxies of its MLPs, verdicts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pandas as pd
import torch

from probinterp.inference import calibrate_noise, save
from probinterp.jobs.clt_checks import check_proxies, flagged_discrepancies
from probinterp.jobs.clt_code_checks import check_codes, is_uncertain
from probinterp.jobs.clt_evaluation import (
    ProxyEvaluation,
    classification,
    evaluate_faithfulness,
    evaluate_proxy,
    reconstruction_rows,
    replacement_rows,
)
from probinterp.jobs.clt_fitting import (
    ExchangedOutputs,
    codeless_proxies,
    fit_transcoder,
    make_transcoder,
)
from probinterp.jobs.clt_pages import choose_cards, write_clt_page
from probinterp.jobs.fitting import output_folder, write_json
from probinterp.models import CrossLayerTranscoder
from probinterp.vision import ActivationData, digits, record_activations, resolve, tiny_clip
from probinterp.vision.tiny_clip import CLASS_NAMES, TEMPLATES

MARGIN = 0.01
N_LATENTS, TARGET_L0 = 512, 32
CHOSEN = (
    "chosen in an earlier run on the same held-out images, so that the verdict is not independent "
    "of it; five newly trained networks, judged on 1,797 digits that they have not seen, agree"
)
MAIN = "CLT, ReLU-TopK"
BAD = "CLT fitted to exchanged outputs"
VALIDATION = 0.1  # of the training images, which train nothing and set the noise scales


class Variant(NamedTuple):
    """How one proxy is made."""

    name: str
    options: dict[str, Any]
    epochs: float  # as a multiple of those asked for
    fit: Mapping[str, Any] = MappingProxyType({})
    exchanged: bool = False


VARIANTS = (
    Variant(MAIN, {"activation": "relu-topk"}, 1),
    Variant("per-layer, ReLU-TopK", {"activation": "relu-topk", "per_layer": True}, 1),
    Variant(
        "CLT, spike and slab",
        {"activation": "truncated-normal", "n_latents": 256},
        1,
        {"learning_rate": 6e-3, "batch_size": 256},  # gates take more steps than TopK to close
    ),
    Variant(BAD, {"activation": "relu-topk"}, 0.25, exchanged=True),
)
EVERY_WINDOW = tuple(variant.name for variant in VARIANTS if not variant.exchanged)


class VisionTables(NamedTuple):
    """Tables of the demonstration."""

    replacement: pd.DataFrame
    reconstruction: pd.DataFrame
    checks: pd.DataFrame


def run_vision_demo(
    out: str | Path = "vision",
    *,
    seed: int = 0,
    device: str = "auto",
    epochs: int = 8,
    progress: bool = True,
) -> tuple[dict[str, Any], VisionTables]:
    """Fit proxies of a small CLIP's MLPs, put each in its place, and judge it.

    Parameters
    ----------
    out
        Directory for ``report.html``, ``model/``, three tables and ``summary.json``.
    seed
        Seed of fits, splits and bootstraps.
    device
        Where to fit.
    epochs
        Passes over the tokens of the training images.
    progress
        Show progress bars.

    Returns
    -------
    tuple
        Summary and tables.

    Notes
    -----
    The margin and the main comparison, all layers and all tokens, are fixed before the held-out
    images are looked at; the size of the dictionary was chosen in a run on the same images.
    """
    started, folder = time.perf_counter(), output_folder(out)
    tower, images = resolve(tiny_clip().model), digits()
    train, heldout = (
        record_activations(tower, part.images, labels=part.labels, store="both", progress=False)
        for part in images
    )
    fitted, validation = train.split(fraction=VALIDATION, seed=seed)
    task = classification(tower, *images.heldout, CLASS_NAMES, TEMPLATES, heldout)
    proxies: dict[str, Any] = {
        variant.name: _fitted(variant, fitted, validation, epochs, seed, device, progress)
        for variant in VARIANTS
    }
    proxies |= {
        name: proxy for name, proxy in codeless_proxies(train, tower).items() if name != "identity"
    }
    found = {
        name: evaluate_proxy(
            proxy,
            task,
            margin=MARGIN,
            seed=seed,
            windows=None if name in EVERY_WINDOW else [range(tower.n_layers)],
        )
        for name, proxy in proxies.items()
    }
    faithfulness = evaluate_faithfulness(proxies[MAIN], task, seed=seed)
    checked = {name: proxies[name] for name in EVERY_WINDOW}
    tables = VisionTables(
        pd.DataFrame(replacement_rows(found)),
        pd.DataFrame(reconstruction_rows(found)),
        check_proxies(checked, validation, heldout, tower.grid, seed),
    )
    codes = {n: check_codes(p, task, seed) for n, p in proxies.items() if is_uncertain(p)}
    settings: dict[str, Any] = {
        "seed": seed,
        "epochs": epochs,
        "margin": MARGIN,
        "latents": N_LATENTS,
    }
    settings |= {"active codes": TARGET_L0, "device": device, "size of the dictionary": CHOSEN}
    write_clt_page(
        folder / "report.html",
        found,
        faithfulness,
        choose_cards(proxies[MAIN], heldout, images.heldout.images[:, 0]),
        title="Transcoders in the place of a CLIP's MLPs",
        margin=MARGIN,
        settings=settings,
        class_names=CLASS_NAMES,
        checks=tables.checks,
        codes=codes,
    )
    save(proxies[MAIN], folder / "model", overwrite=True)
    for name, table in tables._asdict().items():
        table.to_csv(folder / f"{name}.csv", index=False)
    summary = _summary(found, faithfulness.rank.p_value, str(task.floor))
    summary["drift"] = {name: each.drift for name, each in codes.items()}
    summary["checks"] = flagged_discrepancies(tables.checks)
    summary |= {"settings": settings, "seconds": round(time.perf_counter() - started, 1)}
    return write_json(folder / "summary.json", summary), tables


def _fitted(
    variant: Variant,
    data: ActivationData,
    validation: ActivationData,
    epochs: int,
    seed: int,
    device: str,
    progress: bool,
) -> CrossLayerTranscoder:
    sizes = {"n_latents": N_LATENTS, "target_l0": TARGET_L0}
    clt = make_transcoder(data, seed=seed, **(sizes | variant.options))
    history = fit_transcoder(
        clt,
        ExchangedOutputs(data, seed) if variant.exchanged else data,
        epochs=max(1, round(variant.epochs * epochs)),
        seed=seed,
        device=device,
        progress=progress,
        **variant.fit,
    )
    if history.stopped == "interrupted":
        raise KeyboardInterrupt  # half a comparison would mislead
    calibrate_noise(clt.eval(), validation)
    return clt


def _summary(found: dict[str, ProxyEvaluation], rank: float, floor: str) -> dict[str, Any]:
    first = next(iter(found.values()))
    network = first.replacement.network
    return {
        "data": f"{len(network.logits)} held-out digits, CLIP of 4 blocks",
        "accuracy_network": network.accuracy,
        "floor": floor,
        "primary": first.primary,
        "verdicts": {
            name: e.verdict.numbers() | {"accuracy": e.comparisons[e.primary].accuracy_proxy}
            for name, e in found.items()
        },
        "windows": {
            name: {label: v.decision for label, v in e.verdicts.items()}
            for name, e in found.items()
        },
        "sufficiency_rank_p": rank,
        "mean_r2": {
            name: {kind: b.estimate.mean().item() for kind, b in e.reconstruction.items()}
            for name, e in found.items()
        },
        "torch": torch.__version__,
    }
