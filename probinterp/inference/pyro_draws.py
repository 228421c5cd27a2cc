"""Draws of any Pyro program, from a guide or from the samples of a Markov chain."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple, get_args

import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from probinterp.inference.observed_site import (
    ProgramLayout,
    RowLaw,
    ValueMessenger,
    layout_of,
    random_sites,
)
from probinterp.inference.posterior_values import (
    PosteriorValues,
    Unknowns,
    chain_values,
    guide_values,
)
from probinterp.inference.predictive import Local
from probinterp.inference.seeding import ONE_AT_A_TIME, seeded

InferLocal = Callable[[Tensor, Unknowns], Mapping[str, Tensor]]
Program = Callable[..., Any]


class ForeignProgram(NamedTuple):
    """A program with its arguments, the same for all draws.

    Attributes
    ----------
    model
        The program.
    args, kwargs
        Its arguments: covariates and number of the units that are replicated.
    layout
        Its sites.
    local
        Where a replicate's local latents come from.
    infer_local
        Infers local latents from data, or None.
    """

    model: Program
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    layout: ProgramLayout
    local: Local
    infer_local: InferLocal | None

    def run(self, unknowns: Unknowns, seed: int, x: Tensor | None = None) -> dict[str, Any]:
        """Random sites of a run with known latents, the observed one at ``x`` or sampled."""
        layout = self.layout
        value = None if x is None else layout.to_site(x)
        program = poutine.condition(self.model, data=unknowns)
        with torch.no_grad(), seeded(seed, layout.device), ValueMessenger(layout.obs_site, value):
            return random_sites(program, self.args, self.kwargs)


class PyroDraw:
    """One draw of a program's unknowns, as criticism wants to see it.

    Parameters
    ----------
    program
        What is replicated and scored.
    unknowns
        Values of the global sites, and of the local ones unless they come from the prior.
    seed
        Seed of the replicate.
    replicates
        False for a reference, whose local latents make no replicate that is compared, so that
        with ``local="observed"`` it may score with them.
    """

    def __init__(
        self, program: ForeignProgram, unknowns: Unknowns, seed: int, *, replicates: bool = True
    ) -> None:
        self.program, self.unknowns, self.seed = program, unknowns, seed
        self.replicates = replicates

    @property
    def local(self) -> Local:
        """Where the replicate's local latents come from; a list of draws is judged by it."""
        return self.program.local

    def replicate(self) -> Tensor:
        """New observations, shape (N, G)."""
        layout = self.program.layout
        return layout.to_rows(self.program.run(self.unknowns, self.seed)[layout.obs_site]["value"])

    def likelihood(self, x: Tensor) -> TorchDistribution:
        """Distribution of ``x`` (N, G) given the globals and local latents inferred from ``x``.

        Raises
        ------
        ValueError
            If there are local latents and no way to infer them, or ``x`` has another shape.
        """
        unknowns = self.unknowns | self._local_latents(x)
        site = self.program.run(unknowns, self.seed, x)[self.program.layout.obs_site]
        return RowLaw(site["fn"], self.program.layout, site["mask"])

    def _local_latents(self, x: Tensor) -> Unknowns:
        program, names = self.program, sorted(self.program.layout.local_sites)
        fixed = program.local == "observed" and not self.replicates
        if not names or (program.infer_local is None and fixed):
            return {}
        if program.infer_local is None:
            raise ValueError(
                f"these draws have local latents {names} and no way to infer them from the data "
                "they score; with the latents that made the replicate, held-out data of a "
                "correct model look wrong. Pass infer_local=, a function of data (N, G) and the "
                "global values that returns their values, check statistics, which need no "
                "likelihood, or infer them from a part of the units that is not compared "
                "(local='observed', not with kind='realised')."
            )
        inferred = dict(program.infer_local(x, dict(self.unknowns)))
        if sorted(inferred) != names:
            raise ValueError(f"infer_local must return values of {names}, got {sorted(inferred)}.")
        return inferred


class PyroDraws:
    """Posterior predictive draws of a program; iterate as often as you like.

    Made by :func:`pyro_draws`.

    Attributes
    ----------
    reference
        Draw at the posterior mean, for plug-in discrepancies; None where a mean is no possible
        value (a discrete latent, a correlation matrix).
    reference_draws
        Draws that do not replicate, for predictive discrepancies; None if there are none.
    local
        Mode of the local latents, None if the program has none.
    point_estimate
        Whether the globals are point estimates, so that replicates lack their uncertainty.
    n_effective
        Effective number of draws of a Markov chain, else None.
    n_obs
        Number of units of the fit, if known.
    """

    def __init__(
        self, program: ForeignProgram, posterior: PosteriorValues, n_obs: int | None, seed: int
    ) -> None:
        self.program, self.posterior, self.n_obs, self.seed = program, posterior, n_obs, seed
        self.local = program.local if program.layout.local_sites else None
        self.point_estimate = posterior.point_estimate
        self.n_effective = posterior.n_effective

    def __len__(self) -> int:
        return len(self.posterior.keys)

    def __iter__(self) -> Iterator[PyroDraw]:
        generator = torch.Generator().manual_seed(self.seed)
        for key in self.posterior.keys:
            seed = int(torch.randint(2**62, (), generator=generator))
            yield PyroDraw(self.program, self.posterior.take(key), seed)

    @cached_property
    def reference(self) -> PyroDraw | None:
        """Draw at the posterior mean of the unknowns."""
        mean: Unknowns = {}
        for count, key in enumerate(self.posterior.averaged, start=1):
            for name, value in self.posterior.take(key).items():
                value = value if value.is_floating_point() else value.double()
                mean[name] = value if count == 1 else mean[name] + (value - mean[name]) / count
        sites = self.program.run(mean, self.seed)
        possible = (sites[name]["fn"].support.check(value).all() for name, value in mean.items())
        if not all(possible):
            return None
        return PyroDraw(self.program, mean, self.seed, replicates=False)

    @cached_property
    def reference_draws(self) -> tuple[PyroDraw, ...] | None:
        """Draws that do not replicate."""
        draws = (
            PyroDraw(self.program, self.posterior.take(key), self.seed, replicates=False)
            for key in self.posterior.reference_keys
        )
        return tuple(draws) or None


def pyro_draws(
    model: Program,
    *,
    guide: Program | None = None,
    samples: Mapping[str, Tensor] | None = None,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    obs_site: str = "x",
    obs_plate: str | None = None,
    local_sites: Sequence[str] | None = None,
    local: Local = "prior",
    infer_local: InferLocal | None = None,
    n_draws: int | None = None,
    n_reference: int = 0,
    n_chains: int = 1,
    n_obs: int | None = None,
    seed: int = 0,
) -> PyroDraws:
    r"""Draws :math:`\theta_s \sim p(\theta \mid x^{obs})` that replicate units of a Pyro program.

    Nothing is fitted and no parameter changes; parameters of the program and the guide are read
    from Pyro's parameter store, or from their modules, as they are.

    Parameters
    ----------
    model
        Program whose observed site is to be replicated. Data that the program has for that site
        are ignored, those of other observed sites are kept, as covariates.
    guide
        Fitted guide, an ``AutoGuide`` too, called with the arguments of the program; wrap it
        (``lambda *_: guide(x_obs)``) if it needs others.
    samples
        Posterior samples by site instead of a guide, first axis the draws: what
        ``mcmc.get_samples()`` returns.
    args, kwargs
        Arguments of the program for the **held-out** units: their covariates, their number.
    obs_site
        Name of the observed site.
    obs_plate
        Name of its plate over units; only needed if it stands in several plates. Without a plate
        the first axis counts units.
    local_sites
        Names of the latents that belong to single units (or to groups that the fit has not
        seen). Default: those in the plate over units; must be given where that cannot be told.
    local
        Where a replicate's local latents come from. ``"prior"``: drawn afresh by the program, for
        new units. ``"observed"``: from the guide or the samples, which know them from a part of
        these units that is not compared. ``"posterior"``: from a guide that saw the compared data
        themselves; blind to a wrong prior, and labelled so.
    infer_local
        Function of data (N, G) and the global values by site that returns values of the local
        sites, deterministically: what likelihoods need where there are local latents.
    n_draws
        Number of draws that replicate, S. Default: all samples; fewer are spread evenly over
        them. Must be given with a guide.
    n_reference
        Number of further draws for the predictive density of ``kind="predictive"``.
    n_chains
        Number of chains that the samples consist of, one after the other.
    n_obs
        Number of units of the fit.
    seed
        Same seed, same draws.

    Returns
    -------
    PyroDraws
        Iterable of draws; memory of one replicate whatever ``n_draws``. ``n_effective`` is the
        smallest effective sample size of any entry of the global samples.

    Raises
    ------
    KeyError
        If a site or plate that was named does not exist.
    TypeError
        If not exactly one of ``guide`` and ``samples`` is given.
    ValueError
        If the posterior lacks a site, has one of another shape, or an option does not fit.

    References
    ----------
    Holdout predictive checks for Bayesian model criticism (Moran, Blei and Ranganath, 2024); for
    the effective sample size, Introduction to Markov Chain Monte Carlo (Geyer, 2011).

    Examples
    --------
    >>> import pyro, torch
    >>> from pyro.distributions import Normal
    >>> from probinterp.criticism import discrepancies, pop_pc
    >>> def model(n, x=None):
    ...     mean = pyro.sample("mean", Normal(0.0, 10.0))
    ...     with pyro.plate("units", n):
    ...         pyro.sample("x", Normal(mean, 1.0), obs=x)
    >>> samples = {"mean": 0.1 * torch.randn(300)}  # posterior given 100 observations near 0
    >>> draws = pyro_draws(model, samples=samples, args=(20,))
    >>> result = pop_pc(draws, torch.full((20, 1), 2.0), discrepancies.mean)
    >>> result.p_value.item()
    0.0
    """
    if (guide is None) == (samples is None):
        raise TypeError("pyro_draws needs either a guide or samples.")
    if local not in get_args(Local):
        raise ValueError(f"local must be one of {', '.join(get_args(Local))}, got {local!r}.")
    args, kwargs = tuple(args), dict(kwargs or {})
    with ONE_AT_A_TIME, torch.no_grad(), torch.random.fork_rng():
        layout = layout_of(
            model, args, kwargs, obs_site=obs_site, obs_plate=obs_plate, local_sites=local_sites
        )
    wanted = layout.global_sites | ({} if local == "prior" else layout.local_sites)
    if samples is not None:
        posterior = chain_values(samples, layout, wanted, n_draws, n_reference, n_chains)
    elif n_draws is None:
        raise ValueError("n_draws must be given with a guide.")
    else:
        run = partial(_run, guide, args, kwargs, layout.device)
        posterior = guide_values(run, layout, wanted, n_draws, n_reference, seed)
    program = ForeignProgram(model, args, kwargs, layout, local, infer_local)
    return PyroDraws(program, posterior, n_obs, seed + 1)


def _run(
    guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any], device: torch.device, seed: int
) -> dict[str, Any]:
    """Random sites of one run of a guide."""
    if isinstance(guide, AutoGuide) and guide.prototype_trace is None:
        raise ValueError(f"the {type(guide).__name__} was never fitted.")
    with torch.no_grad(), seeded(seed, device):
        return random_sites(guide, args, kwargs)
