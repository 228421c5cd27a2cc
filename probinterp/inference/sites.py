"""Sites of a traced model or guide, as plain values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from probinterp.models.base import OBS_PLATE

Program = Callable[..., None]


class Site(NamedTuple):
    """One random site of a trace.

    Attributes
    ----------
    distribution
        Distribution of the site given its parents.
    value
        Sampled, replayed or observed value.
    scale, mask
        What plates and handlers make of its log density.
    observed
        Whether the value is data.
    local
        Whether the site stands inside ``plate("obs")``.
    """

    distribution: TorchDistribution
    value: Tensor
    scale: Tensor | float
    mask: Tensor | bool | None
    observed: bool
    local: bool

    def log_prob(self) -> Tensor:
        """Log density of the value, without scale and mask."""
        return self.distribution.log_prob(self.value)

    def scaled_sum(self, terms: Tensor) -> Tensor:
        """Sum of ``terms`` after scale and mask."""
        return scale_and_mask(terms, self.scale, self.mask).sum()


def sites_of(program: Program, *args: Any, **kwargs: Any) -> dict[str, Site]:
    """Run a program and return its random sites by name, in order."""
    return _sites(poutine.trace(program).get_trace(*args, **kwargs))


def paired_sites(
    model: Program, guide: Program, *args: Any, **kwargs: Any
) -> tuple[dict[str, Site], dict[str, Site]]:
    """Sites of the model at the values that the guide samples, and those of the guide."""
    proposed = poutine.trace(guide).get_trace(*args, **kwargs)
    replayed = poutine.replay(model, trace=proposed)
    return sites_of(replayed, *args, **kwargs), _sites(proposed)


def _sites(trace: Any) -> dict[str, Site]:
    nodes = trace.nodes.items()
    kept = (item for item in nodes if item[1]["type"] == "sample")
    return {name: _site(node) for name, node in kept if not site_is_subsample(node)}


def _site(node: Any) -> Site:
    local = any(frame.name == OBS_PLATE for frame in node["cond_indep_stack"])
    fn, value, observed = node["fn"], node["value"], node["is_observed"]
    return Site(fn, value, node["scale"], node["mask"], observed, local)
