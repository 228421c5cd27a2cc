"""Values of a program's latents, draw by draw: from a Markov chain or from runs of a guide."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import Independent

from probinterp.inference.effective_size import effective_size
from probinterp.inference.observed_site import ProgramLayout

AVERAGED_DRAWS = 256  # of a guide, for the reference at the posterior mean

Unknowns = dict[str, Tensor]
Shapes = Mapping[str, torch.Size]


class PosteriorValues(NamedTuple):
    """Where draws take their unknowns from.

    Attributes
    ----------
    take
        Values by site for one key: an index of the chain, a seed of the guide.
    keys, reference_keys
        Keys of the draws that replicate, and of those kept apart.
    averaged
        Keys over which the posterior mean is taken.
    point_estimate
        Whether all draws have the same global values.
    n_effective
        Effective number of replicating draws of a chain, else None.
    """

    take: Callable[[int], Unknowns]
    keys: Sequence[int]
    reference_keys: Sequence[int]
    averaged: Sequence[int]
    point_estimate: bool
    n_effective: float | None


def chain_values(
    samples: Mapping[str, Any],
    layout: ProgramLayout,
    wanted: Shapes,
    n_draws: int | None,
    n_reference: int,
    n_chains: int,
) -> PosteriorValues:
    """Samples of the ``wanted`` sites, spread evenly over the chain.

    Raises
    ------
    ValueError
        If a site is missing or has another shape, or there are too few samples.
    """
    _require_sites(samples, wanted)
    kept = {name: torch.as_tensor(samples[name], device=layout.device) for name in wanted}
    lengths = {name: len(value) for name, value in kept.items()}
    total = next(iter(lengths.values()), 0)
    if total == 0 or len(set(lengths.values())) > 1:
        raise ValueError(f"samples must have the same number of draws, at least 1, got {lengths}.")
    _require_shapes({name: value[0] for name, value in kept.items()}, wanted)
    n_draws = total - n_reference if n_draws is None else n_draws
    _require_counts(n_draws, n_reference)
    n_chosen = n_draws + n_reference
    if n_chosen > total:
        raise ValueError(
            f"there are {total} samples, fewer than n_draws + n_reference = {n_chosen}."
        )
    chosen = torch.linspace(0, total - 1, n_chosen, dtype=torch.float64).round().long().tolist()
    apart = chosen[:: n_chosen // n_reference][:n_reference] if n_reference else []
    effective = _effective_size(kept, layout, n_chains, total)
    return PosteriorValues(
        lambda index: {name: value[index] for name, value in kept.items()},
        sorted(set(chosen) - set(apart)),
        apart,
        averaged=range(total),
        point_estimate=total == 1,
        n_effective=None if effective is None else min(effective, float(n_draws)),
    )


def guide_values(
    run: Callable[[int], Mapping[str, Any]],
    layout: ProgramLayout,
    wanted: Shapes,
    n_draws: int,
    n_reference: int,
    seed: int,
) -> PosteriorValues:
    """Values of the ``wanted`` sites in runs of a guide, one per seed.

    Raises
    ------
    ValueError
        If a site is missing or has another shape.
    """
    _require_counts(n_draws, n_reference)
    generator = torch.Generator().manual_seed(seed)
    n_keys = n_draws + n_reference + AVERAGED_DRAWS
    keys = torch.randint(2**62, (n_keys,), generator=generator).tolist()
    sites = run(keys[-1])
    values = {name: site["value"] for name, site in sites.items()}
    _require_sites(values, wanted)
    _require_shapes(values, wanted)
    certain = _is_point_estimate(sites, layout)
    return PosteriorValues(
        lambda key: {name: site["value"] for name, site in run(key).items() if name in wanted},
        keys[:n_draws],
        keys[n_draws : n_draws + n_reference],
        averaged=keys[-1:] if certain else keys[-AVERAGED_DRAWS:],
        point_estimate=certain,
        n_effective=None,
    )


def _require_sites(given: Mapping[str, Any], wanted: Shapes) -> None:
    if missing := sorted(set(wanted) - set(given)):
        raise ValueError(
            f"the posterior has no values of {missing}, which replicates would then draw from "
            f"the prior; it has {sorted(given)}. Latents of single units belong in local_sites."
        )


def _require_shapes(values: Mapping[str, Tensor], wanted: Shapes) -> None:
    for name, shape in wanted.items():
        if values[name].shape != shape:
            raise ValueError(
                f"a draw of {name!r} must have the shape of the program's site, {tuple(shape)}, "
                f"got {tuple(values[name].shape)}."
            )


def _require_counts(n_draws: int, n_reference: int) -> None:
    for name, value, least in (("n_draws", n_draws, 1), ("n_reference", n_reference, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}.")


def _is_point_estimate(sites: Mapping[str, Any], layout: ProgramLayout) -> bool:
    """Whether a guide draws nothing at random but local latents."""
    stacks = {name: {f.name for f in site["cond_indep_stack"]} for name, site in sites.items()}
    plates = set().union(*(stacks.get(name, set()) for name in layout.local_sites))
    for name, site in sites.items():
        law = site["fn"]
        while isinstance(law, Independent):
            law = law.base_dist
        local = name in layout.local_sites or stacks[name] & plates
        if not local and not isinstance(law, Delta):
            return False
    return True


def _effective_size(
    samples: Unknowns, layout: ProgramLayout, n_chains: int, total: int
) -> float | None:
    """Smallest effective sample size of any entry of the global samples."""
    if n_chains < 1 or total % n_chains:
        raise ValueError(f"n_chains must divide the number of samples, {total}, got {n_chains}.")
    found = [torch.empty(0, dtype=torch.float64)]
    for name in layout.global_sites:
        chains = samples[name].reshape(n_chains, total // n_chains, -1)
        if chains.shape[2]:
            found.append(effective_size(chains).cpu())
    sizes = torch.cat(found)
    sizes = sizes[sizes.isfinite() & (sizes > 0)]  # NaN where a parameter does not move
    return sizes.min().item() if len(sizes) else None
