"""What the uncertain codes of a spike-and-slab transcoder say of themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from probinterp.criticism import TokenLayout, drift_check, rate_check
from probinterp.jobs.clt_evaluation import Task, chosen_images
from probinterp.models import CrossLayerTranscoder
from probinterp.reporting import Section, Table
from probinterp.vision import replace_mlps, zero_shot

N_DRAWS, MOST_IMAGES = 39, 100
MOST_CODES = 2**26  # gates in memory at once


class CodeChecks(NamedTuple):
    """Checks of uncertain codes.

    Attributes
    ----------
    rates
        Active codes, sum of the gates and prior expectation, one row a layer.
    drift
        Summary of :class:`~probinterp.criticism.DriftCheck`.
    """

    rates: pd.DataFrame
    drift: dict[str, float]


def is_uncertain(proxy: Any) -> bool:
    """Whether a proxy gives distributions of codes."""
    return isinstance(proxy, CrossLayerTranscoder) and not proxy.activation.is_point


def check_codes(clt: CrossLayerTranscoder, task: Task, seed: int = 0) -> CodeChecks:
    """Compare gates with prior rates, and draws of the codes with their means in the network.

    At most 100 held-out images, drawn at random; 39 draws.
    """
    index = chosen_images(task.data, MOST_IMAGES, seed)
    return CodeChecks(_rates(clt, task, index), _drift(clt, task, index, seed))


def codes_section(found: Mapping[str, CodeChecks]) -> Section:
    """Rates and drift of each transcoder, as a section of a page."""
    text = (
        "A spike-and-slab transcoder says with which probability each code is active. Active: "
        "gates above one half, the sparse code; sum of the gates: what the posterior mean uses, "
        "which stands in the network unless said; the prior follows the gates of the training "
        "tokens. Logit drift: how far class probabilities move with the posterior mean, and with "
        "draws of the codes, in the place of all MLPs; a small p says that the network's own "
        "logits are not like one more draw: the error is not what the codes leave open."
    )
    rates = pd.concat(
        [each.rates.assign(proxy=name) for name, each in found.items()], ignore_index=True
    )
    drift = pd.DataFrame(
        [
            {
                "proxy": name,
                "KL, mean": each.drift["kl_mean"],
                "KL, draws": each.drift["kl_draws"],
                "largest change, mean": each.drift["largest_mean"],
                "largest change, draws": each.drift["largest_draws"],
                "p, KL": each.drift["p_two_sided, kl"],
                "p, largest change": each.drift["p_two_sided, largest change"],
            }
            for name, each in found.items()
        ]
    )
    smallest = f"{N_DRAWS} draws: the smallest p is {2 / (N_DRAWS + 1):.2f}."
    columns = ["proxy", *(name for name in rates if name != "proxy")]
    tables = [
        Table(
            rates[columns],
            "Codes a token, by layer. Latents off: share of the latents whose mean gate is not "
            "their prior rate (Benjamini and Hochberg, 5 %).",
            {"latents off, %": ".0f"},
        ),
        Table(drift, f"In nats, and in units of logits; {smallest}"),
    ]
    return Section("What do its uncertain codes say?", text, tables=tables)


@torch.no_grad()
def _rates(clt: CrossLayerTranscoder, task: Task, index: Tensor) -> pd.DataFrame:
    each = task.data.n_tokens * clt.n_layers * clt.n_latents
    batch = task.data.images(index[: max(2, MOST_CODES // each)]).batch()
    assert batch.image is not None
    assert batch.token_type is not None
    layout = TokenLayout(batch.image, batch.token_type, clt.n_layers)
    inclusion = clt.posterior_codes(batch.inputs).inclusion
    prior: Any = clt.activation.prior()
    found = rate_check(inclusion, prior.base_dist.inclusion, layout).summary()
    return pd.DataFrame(
        {
            "layer": range(clt.n_layers),
            "active": (clt.hard_codes(batch.inputs) != 0).double().sum(2).mean(0).tolist(),
            "sum of the gates": found["posterior_l0"],
            "prior": found["prior_l0"],
            "latents off, %": [100 * share for share in found["share_off"]],
        }
    )


def _drift(clt: CrossLayerTranscoder, task: Task, index: Tensor, seed: int) -> dict[str, float]:
    images = [_image(task.images[i]) for i in index.tolist()]

    def logits(**codes: Any) -> Tensor:
        with replace_mlps(task.tower, clt, tokens=task.replaced[-1], **codes):
            return network()

    def network() -> Tensor:
        prompts = (task.class_names, task.templates)
        return zero_shot(task.tower, images, *prompts, text=task.text).logits

    draws = [lambda s=s: logits(codes="sample", seed=s) for s in range(seed, seed + N_DRAWS)]
    return drift_check(network(), draws, logits(), seed=seed).summary()


def _image(entry: Any) -> Any:
    """Pixels of an image that may come with its label."""
    return entry[0] if isinstance(entry, tuple) else entry
