"""Stop at the first NaN or infinity, name the culprit, keep the last good weights."""

from __future__ import annotations

import torch
from torch import Tensor

from probinterp.inference.early_stopping import snapshot
from probinterp.inference.sites import paired_sites
from probinterp.models.base import AnyBatch, ProbabilisticModel


class NonFiniteError(RuntimeError):
    """A loss, gradient or parameter stopped being finite; the model has its last good weights."""


class FiniteGuard:
    """Watch the loss and the gradient norm of every step.

    On the CPU each step is checked before the weights change. On other devices reading a value
    would stall the queue, so the flag is kept there and read once an epoch, and the
    weights of the last checked epoch are put back.
    """

    def __init__(self, model: ProbabilisticModel, device: torch.device) -> None:
        self.model = model
        self.immediate = device.type == "cpu"
        self.bad = torch.zeros((), dtype=torch.bool, device=device)
        self.good = None if self.immediate else snapshot(model)

    def watch(self, loss: Tensor, gradient_norm: Tensor, batch: AnyBatch) -> None:
        """Note one step; on the CPU raise :class:`NonFiniteError` before it is taken."""
        self.bad |= ~(torch.isfinite(loss) & torch.isfinite(gradient_norm)).detach()
        if self.immediate:
            self.check(batch)

    def check(self, batch: AnyBatch) -> None:
        """Raise :class:`NonFiniteError` if any step since the last check was not finite."""
        if bool(self.bad):
            culprit = describe_non_finite(self.model, batch)
            if self.good is not None:
                self.model.load_state_dict(self.good)
            raise NonFiniteError(f"{culprit}; the model has its last good weights.")
        if not self.immediate:
            self.good = snapshot(self.model)


@torch.no_grad()
def describe_non_finite(model: ProbabilisticModel, batch: AnyBatch) -> str:
    """Say which parameter or site of the model is not finite on ``batch``."""
    if not torch.isfinite(batch.x).all():
        return "the observations hold NaN or infinite values"
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            return f"parameter {name!r} is not finite"
    sites, proposed = paired_sites(model.model, model.guide, batch)
    for origin, found in (("guide", proposed), ("model", sites)):
        for name, site in found.items():
            if not torch.isfinite(site.value).all():
                return f"site {name!r} of the {origin} has a value that is not finite"
            if not torch.isfinite(site.log_prob()).all():
                return f"site {name!r} of the {origin} has a log density that is not finite"
    gradients = [n for n, p in model.named_parameters() if not _finite_gradient(p)]
    return f"the gradient of {', '.join(map(repr, gradients)) or 'the loss'} is not finite"


def _finite_gradient(parameter: Tensor) -> bool:
    return parameter.grad is None or bool(torch.isfinite(parameter.grad).all())
