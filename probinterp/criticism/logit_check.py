"""What a proxy's error does to the decision: logits after its predictions are put in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution

from probinterp.criticism.draws import FunctionDraw, PredictiveDraw
from probinterp.criticism.image_uniformity import ImageChecks, image_checks
from probinterp.criticism.logit_drift import logit_drift
from probinterp.criticism.pop_pc import pop_pc_suite
from probinterp.criticism.result import PopPCResult

NAMES = ("kl", "largest change")
Logits = Tensor | Callable[[], Tensor]


@dataclass(frozen=True, eq=False)
class DriftCheck:
    """Zero-shot drift of a proxy; N images, S draws.

    Parameters
    ----------
    kl_mean, largest_mean
        Divergence from the network's class probabilities, in nats, and largest absolute change of a
        logit, with the predictive mean in place, shape (N,).
    kl_draws, largest_draws
        The same with draws in place, shape (S, N).
    pooled
        Whether the network lies among the draws: predictive checks of the drift from the mean,
        averaged over images, by ``"kl"`` and ``"largest change"``.
    images
        The same for every image.
    """

    kl_mean: Tensor
    largest_mean: Tensor
    kl_draws: Tensor
    largest_draws: Tensor
    pooled: dict[str, PopPCResult]
    images: dict[str, ImageChecks]

    def summary(self) -> dict[str, float]:
        """Averages over images and draws, and the p-values of the checks."""
        found = {
            "kl_mean": float(self.kl_mean.mean()),
            "kl_draws": float(self.kl_draws.mean()),
            "largest_mean": float(self.largest_mean.mean()),
            "largest_draws": float(self.largest_draws.mean()),
        }
        for name, result in self.pooled.items():
            found[f"p, {name}"] = float(result.p_value)
            found[f"p_two_sided, {name}"] = float(result.p_two_sided)
            found[f"ks_p, {name}"] = float(self.images[name].ks_p[0])
        return found


def drift_check(
    reference_logits: Logits,
    logits_of_draws: Iterable[Logits],
    logits_of_mean: Logits,
    *,
    seed: int = 0,
) -> DriftCheck:
    r"""Compare logits with draws of the proxy, and with its mean, in the network's place.

    .. math:: \mathrm{KL}\big(\mathrm{softmax}(\ell)\,\Vert\,\mathrm{softmax}(\ell')\big),
        \qquad \max_c |\ell'_c - \ell_c|

    from the network's logits :math:`\ell` to those with a draw or the mean in place says how much
    behaviour changes. If the predictive law is right, the network's outputs are one more draw from
    it, and so are its logits: the check compares the drift between the logits of the mean and
    the network's with that between the mean's and each draw's.

    Parameters
    ----------
    reference_logits
        Logits of the network, shape (N, C), or a function that returns them.
    logits_of_draws
        Logits with each of S draws in place, shape (N, C) each, or functions that return them, made
        one at a time; a tensor (S, N, C) will do.
    logits_of_mean
        Logits with the predictive mean in place, shape (N, C), or a function.
    seed
        Seed of what breaks ties.

    Raises
    ------
    ValueError
        If images or classes differ in number, or there are no draws.
    """
    reference, mean = _evaluated(reference_logits), _evaluated(logits_of_mean)
    if reference.ndim != 2 or mean.shape != reference.shape:
        raise ValueError(
            "logits of the network and of the mean must have the same shape (N, C), got "
            f"{tuple(reference.shape)} and {tuple(mean.shape)}."
        )
    drawn = _Drawn(logits_of_draws, reference)
    suite = {}
    for index, name in enumerate(NAMES):
        suite[name] = _from_mean(mean, index, pooled=True)
        suite[name + " of each image"] = _from_mean(mean, index, pooled=False)
    results = pop_pc_suite(drawn, reference, suite, seed=seed)
    images = {name: _image_checks(name, results[name + " of each image"]) for name in NAMES}
    kl_draws, largest_draws = (torch.stack(values) for values in zip(*drawn.drifts, strict=True))
    kl_mean, largest_mean = logit_drift(reference, mean)
    pooled = {name: results[name] for name in NAMES}
    return DriftCheck(kl_mean, largest_mean, kl_draws, largest_draws, pooled, images)


class _Drawn:
    """Logits of draws as draws that replicate; notes their drift on the way."""

    local, point_estimate = "covariates", False

    def __init__(self, logits: Iterable[Logits], reference: Tensor) -> None:
        self._logits, self._reference_logits = logits, reference
        self.drifts: list[tuple[Tensor, Tensor]] = []
        self.reference = FunctionDraw(lambda: reference, _no_likelihood)

    def __iter__(self) -> Iterator[PredictiveDraw]:
        for one in self._logits:
            logits = _evaluated(one)
            if logits.shape != self._reference_logits.shape:
                raise ValueError(
                    f"logits of a draw must have shape {tuple(self._reference_logits.shape)} like "
                    f"those of the network, got {tuple(logits.shape)}."
                )
            self.drifts.append(logit_drift(self._reference_logits, logits))
            yield FunctionDraw(lambda logits=logits: logits, _no_likelihood)  # type: ignore[misc]


def _no_likelihood(x: Tensor) -> Distribution:
    raise TypeError("logits of a proxy have no likelihood.")


def _evaluated(logits: Logits) -> Tensor:
    return (logits if isinstance(logits, Tensor) else logits()).double()


def _from_mean(
    mean: Tensor, index: int, *, pooled: bool
) -> Callable[[Tensor, PredictiveDraw], Tensor]:
    def drift(x: Tensor, draw: PredictiveDraw) -> Tensor:
        values = logit_drift(x, mean)[index]
        return values.mean() if pooled else values

    return drift


def _image_checks(name: str, each: PopPCResult) -> ImageChecks:
    return image_checks(
        name,
        ("all",),
        each.heldout.reshape(-1, 1),
        each.replicated.unsqueeze(-1),
        each.uniform.unsqueeze(-1),
    )
