"""Structure of a foreign Pyro program: which axis counts units, which latents are theirs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Independent


class ProgramLayout(NamedTuple):
    """What one run of a program shows of its sites.

    Attributes
    ----------
    obs_site
        Name of the observed site.
    shape
        Shape of its value.
    axis
        Axis of that shape that counts units.
    global_sites, local_sites
        Shapes of the latent sites by name.
    device
        Where the data lie.
    """

    obs_site: str
    shape: torch.Size
    axis: int
    global_sites: dict[str, torch.Size]
    local_sites: dict[str, torch.Size]
    device: torch.device

    @property
    def n_units(self) -> int:
        """Number of units, N."""
        return self.shape[self.axis]

    def to_rows(self, value: Tensor) -> Tensor:
        """Value of the observed site as data, shape (N, G), floating point."""
        rows = value.expand(self.shape).movedim(self.axis, 0).reshape(self.n_units, -1)
        return rows if rows.is_floating_point() else rows.to(torch.get_default_dtype())

    def to_site(self, x: Tensor) -> Tensor:
        """Data, shape (N, G), as a value of the observed site."""
        n_features = math.prod(self.shape) // self.n_units
        if x.shape != (self.n_units, n_features):
            raise ValueError(
                f"x must have the shape of the replicates, ({self.n_units}, {n_features}), got "
                f"{tuple(x.shape)}."
            )
        others = [size for axis, size in enumerate(self.shape) if axis != self.axis]
        return x.reshape(self.n_units, *others).movedim(0, self.axis)


def random_sites(
    program: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Run a program and return the random sites of its trace, as Pyro keeps them."""
    nodes = poutine.trace(program).get_trace(*args, **kwargs).nodes
    kept = (item for item in nodes.items() if item[1]["type"] == "sample")
    return {name: node for name, node in kept if not site_is_subsample(node)}


def layout_of(
    program: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    obs_site: str,
    obs_plate: str | None,
    local_sites: Sequence[str] | None,
) -> ProgramLayout:
    """Run a program once and read its layout, see :func:`probinterp.inference.pyro_draws`.

    Raises
    ------
    KeyError
        If a site or plate that was named does not exist.
    ValueError
        If units, or local and global latents, cannot be told apart.
    """
    sites = random_sites(program, args, kwargs)
    if obs_site not in sites:
        raise KeyError(f"the program has no site {obs_site!r}; its sites: {sorted(sites)}.")
    observed = sites[obs_site]
    shape = torch.Size(observed["fn"].batch_shape + observed["fn"].event_shape)
    if len(shape) == 0:
        raise ValueError(f"site {obs_site!r} is a single number; a check needs units.")
    plate, axis = _unit_axis(observed, obs_plate)
    latents = {n: s for n, s in sites.items() if n != obs_site and not s["is_observed"]}
    local = _local_sites(latents, plate, shape[axis], local_sites)
    shapes = {name: site["value"].shape for name, site in latents.items()}
    return ProgramLayout(
        obs_site,
        shape,
        axis,
        {name: size for name, size in shapes.items() if name not in local},
        {name: size for name, size in shapes.items() if name in local},
        observed["value"].device,
    )


def _unit_axis(observed: Any, obs_plate: str | None) -> tuple[str | None, int]:
    """Name of the plate of the units, if any, and its axis in the shape of the site."""
    frames = {f.name: f for f in observed["cond_indep_stack"] if f.vectorized}
    if obs_plate is not None and obs_plate not in frames:
        raise KeyError(
            f"site {observed['name']!r} is not in a plate {obs_plate!r}; its plates: "
            f"{sorted(frames)}."
        )
    if obs_plate is None and len(frames) > 1:
        raise ValueError(
            f"site {observed['name']!r} stands in several plates, {sorted(frames)}; pass "
            "obs_plate, the one over units."
        )
    if not frames:
        return None, 0
    frame = frames[obs_plate] if obs_plate is not None else next(iter(frames.values()))
    return frame.name, len(observed["fn"].batch_shape) + frame.dim


def _local_sites(
    latents: Mapping[str, Any], plate: str | None, n_units: int, named: Sequence[str] | None
) -> set[str]:
    if named is not None:
        if unknown := sorted(set(named) - set(latents)):
            raise KeyError(
                f"local_sites names {unknown}, but the latent sites are {sorted(latents)}."
            )
        return set(named)
    if plate is not None:
        frames = {name: site["cond_indep_stack"] for name, site in latents.items()}
        return {name for name, stack in frames.items() if any(f.name == plate for f in stack)}
    suspect = sorted(name for name, site in latents.items() if n_units in site["value"].shape)
    if suspect:
        raise ValueError(
            f"the units stand in no plate, and {suspect} have as many entries as there are "
            f"units ({n_units}): pass local_sites, the names of the latents that belong to "
            "single units, empty if there are none."
        )
    return set()


class ValueMessenger(Messenger):
    """Give a site a value, or have it sampled although the program has data for it."""

    def __init__(self, site: str, value: Tensor | None) -> None:
        super().__init__()
        self.site, self.value = site, value

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == self.site:
            msg["value"], msg["is_observed"] = self.value, self.value is not None
            msg["done"] = False


class RowLaw(TorchDistribution):
    """Distribution of an observed site as one of data: batch (N,), event (G,).

    Parameters
    ----------
    distribution
        Distribution of the site.
    layout
        Which axis counts units.
    mask
        Which entries count in the density, as the site's plates and handlers say; or None.

    Raises
    ------
    ValueError
        If the units are not independent of each other: one density for all of them.
    """

    arg_constraints = {}

    def __init__(
        self, distribution: TorchDistribution, layout: ProgramLayout, mask: Tensor | bool | None
    ) -> None:
        while isinstance(distribution, Independent):
            distribution = distribution.base_dist
        if layout.axis >= len(distribution.batch_shape):
            raise ValueError(
                f"site {layout.obs_site!r} has one density for all units "
                f"({type(distribution).__name__} with event shape "
                f"{tuple(distribution.event_shape)}); only statistics can be checked."
            )
        self._law, self._layout, self._mask = distribution, layout, mask
        n_features = math.prod(layout.shape) // layout.n_units
        batch, event = torch.Size([layout.n_units]), torch.Size([n_features])
        super().__init__(batch, event, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of each row of ``value`` (N, G), shape (N,)."""
        density = self._law.log_prob(self._layout.to_site(value))
        if self._mask is not None:
            density = torch.where(torch.as_tensor(self._mask, device=value.device), density, 0.0)
        rows = density.expand(self._law.batch_shape).movedim(self._layout.axis, 0)
        return rows.reshape(self._layout.n_units, -1).sum(1)

    def sample(self, sample_shape: torch.Size | Sequence[int] = ()) -> Tensor:
        """Data, shape (N, G), after the axes of ``sample_shape``."""
        draws = [self._layout.to_rows(self._law.sample()) for _ in range(math.prod(sample_shape))]
        return torch.stack(draws).reshape(*sample_shape, *self.batch_shape, *self.event_shape)

    @property
    def mean(self) -> Tensor:
        """Mean of the data, shape (N, G)."""
        return self._layout.to_rows(self._law.mean)

    @property
    def variance(self) -> Tensor:
        """Variance of the data, shape (N, G)."""
        return self._layout.to_rows(self._law.variance)
