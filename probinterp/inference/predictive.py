"""Draws from the posterior predictive, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta, TorchDistribution
from torch import Tensor

from probinterp.inference.data import to_device
from probinterp.inference.marginal import IntegratedLikelihood
from probinterp.inference.seeding import seeded
from probinterp.inference.sites import Site, sites_of
from probinterp.models.base import OBS_SITE, AnyBatch, Batch, ProbabilisticModel
from probinterp.nn import DecodedObservations

Local = Literal["prior", "posterior", "observed", "covariates"]
KNOWN = ("observed", "covariates")  # modes in which latents are inferred from other than the data
Scoring = Literal["inferred", "marginal"]


class Units(NamedTuple):
    """The units that are replicated and scored, the same for all draws.

    Attributes
    ----------
    model
        Fitted model.
    batch
        Covariates and shape of the replicate; its ``x`` is used only for totals and, with
        ``local="posterior"``, to infer the local latents of the replicate.
    local
        Where a replicate's local latents come from.
    observed
        The observed part of the same units, for ``local="observed"``.
    scoring
        What a likelihood does with the local latents.
    n_samples
        Samples of the local latents in a marginal likelihood without closed form.
    point_estimate
        Whether the globals of all draws are the same point estimates.
    """

    model: ProbabilisticModel
    batch: AnyBatch
    local: Local
    observed: AnyBatch | None
    scoring: Scoring
    n_samples: int
    point_estimate: bool = False


class ModelDraw:
    """One draw of a model's global unknowns, as criticism wants to see it.

    Parameters
    ----------
    units
        What is replicated and scored.
    unknowns
        Values of the global sites.
    seed
        Seed of the replicate.
    like
        A draw with the same globals, whose inferences are shared; or None.
    """

    def __init__(
        self, units: Units, unknowns: dict[str, Tensor], seed: int, like: ModelDraw | None = None
    ) -> None:
        self.units, self.unknowns, self.seed, self._like = units, unknowns, seed, like

    @property
    def local(self) -> Local:
        """Where the replicate's local latents come from; a list of draws is judged by it."""
        return self.units.local

    @property
    def scoring(self) -> Scoring:
        """What the likelihood does with local latents."""
        return self.units.scoring

    @property
    def point_estimate(self) -> bool:
        """Whether the globals are point estimates."""
        return self.units.point_estimate

    @torch.no_grad()
    def replicate(self) -> Tensor:
        """New observations with the batch's covariates, of its shape: (N, G), or (N, L, D)."""
        units = self.units
        with seeded(self.seed, units.batch.x.device), pyro.validation_enabled(False):
            values = dict(self.unknowns)
            if units.local != "prior":
                values |= {name: law.sample() for name, law in self.locals_.items()}
            program = poutine.condition(poutine.uncondition(units.model.model), data=values)
            return sites_of(program, units.batch)[OBS_SITE].value

    @torch.no_grad()
    def likelihood(self, x: Tensor) -> TorchDistribution:
        """Distribution of ``x`` (N, G) given the globals.

        With ``scoring="inferred"`` the local latents are at their posterior mean given ``x``
        itself (given the observed part, with ``local="observed"``, or the covariates, with
        ``"covariates"``); with ``"marginal"`` they are integrated out. Either way the result is
        a function of the data and the globals alone: the latents that made a replicate are never
        used.
        """
        batch = self.units.batch
        if x.shape[1:] != batch.x.shape[1:]:
            features = " x ".join(map(str, batch.x.shape[1:]))
            raise ValueError(f"x must have {features} features, got shape {tuple(x.shape)}.")
        batch = batch._replace(x=x)
        known = self.locals_ if self.units.local in KNOWN else None
        with seeded(self.seed, x.device):
            if self.units.scoring == "marginal":
                return self._integrated(batch, known)
            inferred = self._inferred(batch) if known is None else known
            means = {name: law.mean for name, law in inferred.items()}
            program = poutine.condition(self.units.model.model, data=self.unknowns | means)
            law = sites_of(program, batch)[OBS_SITE].distribution
        # mean, variance and density of a streamed likelihood would each run the decoder
        return law.decoded if isinstance(law, DecodedObservations) else law

    @cached_property
    def locals_(self) -> dict[str, TorchDistribution]:
        """Distribution of the replicate's local latents, by site, where it is not the prior."""
        if self._like is not None:
            return self._like.locals_
        units = self.units
        if units.local != "observed":
            return self._inferred(units.batch)
        assert units.observed is not None
        exact = units.model.exact_locals(units.observed)
        return self._inferred(units.observed) if exact is None else exact

    def _inferred(self, batch: AnyBatch) -> dict[str, TorchDistribution]:
        guide = poutine.condition(self.units.model.guide, data=self.unknowns)
        with torch.no_grad(), seeded(self.seed, batch.x.device), pyro.validation_enabled(False):
            found = sites_of(guide, batch)
        return {name: site.distribution for name, site in found.items() if site.local}

    def _integrated(
        self, batch: AnyBatch, over: dict[str, TorchDistribution] | None
    ) -> TorchDistribution:
        exact = self.units.model.exact_marginal(batch, over)
        if exact is not None:
            return exact
        model, n_samples = self.units.model, self.units.n_samples
        return IntegratedLikelihood(model, batch, self.unknowns, n_samples, self.seed, over)


class PredictiveDraws:
    """Posterior predictive draws of a model; iterate as often as you like.

    Attributes
    ----------
    reference
        Draw at the posterior mean of the globals, for plug-in discrepancies.
    local
        Mode of the local latents: ``"prior"``, ``"posterior"``, ``"observed"`` or
        ``"covariates"``.
    scoring
        What likelihoods do with the local latents: ``"inferred"`` or ``"marginal"``.
    point_estimate
        Whether the globals are point estimates, so that replicates lack their uncertainty.
    """

    def __init__(self, units: Units, n_draws: int, seed: int) -> None:
        self.units, self.n_draws, self.seed = units, n_draws, seed
        self.local, self.scoring = units.local, units.scoring
        sites = self._globals(seed)
        self.point_estimate = all(isinstance(s.distribution, Delta) for s in sites.values())
        self.units = units = units._replace(point_estimate=self.point_estimate)
        center = {name: site.distribution.mean for name, site in sites.items()}
        self.reference = ModelDraw(units, center, seed)

    def __len__(self) -> int:
        return self.n_draws

    def __iter__(self) -> Iterator[ModelDraw]:
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.n_draws):
            seed = int(torch.randint(2**62, (), generator=generator))
            if self.point_estimate:
                center = self.reference
                yield ModelDraw(self.units, center.unknowns, seed + 1, like=center)
            else:
                unknowns = {name: site.value for name, site in self._globals(seed).items()}
                yield ModelDraw(self.units, unknowns, seed + 1)

    @torch.no_grad()
    def _globals(self, seed: int) -> dict[str, Site]:
        # globals do not depend on the batch: one row of it spares the encoder's work on the others
        batch = self.units.batch.rows(slice(0, 1))
        with seeded(seed, batch.x.device), pyro.validation_enabled(False):
            found = sites_of(self.units.model.guide, batch)
        return {name: site for name, site in found.items() if not site.local}


def predictive_draws(
    model: ProbabilisticModel,
    batch: AnyBatch,
    n_draws: int,
    *,
    local: Local | None = None,
    observed: AnyBatch | None = None,
    scoring: Scoring = "inferred",
    n_samples: int = 32,
    seed: int = 0,
) -> PredictiveDraws:
    r"""Draws :math:`\theta_s \sim q(\theta)` that can replicate a batch and score data.

    Parameters
    ----------
    model
        Fitted model.
    batch
        Held-out observations: covariates and shape of the replicates.
    n_draws
        Number of draws, S.
    local
        By default ``"covariates"`` for a model that infers its latents from covariates alone
        (``model.conditional``), else ``"prior"``.
        ``"covariates"``: replicates have latents drawn from :math:`q(z \mid \text{covariates})`,
        which never saw the compared data; only for such models.
        ``"prior"``: replicates are of new units, which checks the factors' prior too.
        ``"observed"``: replicates share the factors inferred from ``observed``, a part of the
        same units that is disjoint from the compared data, which checks
        :math:`p(x \mid z)` given the unit: document completion, masked cells.
        ``"posterior"``: replicates share the factors inferred from ``batch`` itself, which
        uses that batch twice and is blind to a wrong prior.
    observed
        For ``local="observed"`` and only then: the other half of each unit with its own
        totals, or the same rows with a ``mask`` that leaves the compared cells out.
    scoring
        What ``likelihood(x)`` does with the factors. ``"inferred"``: it has them at their
        posterior mean given ``x`` (given ``observed``, with ``local="observed"``; given the
        covariates, with ``"covariates"``).
        ``"marginal"``: it integrates over their prior (over their posterior given
        ``observed`` or the covariates), in closed form where the model has one, else by sampling.
    n_samples
        Samples of a marginal likelihood without closed form.
    seed
        Same seed, same draws.

    Returns
    -------
    PredictiveDraws
        Iterable of draws; memory O(N G) whatever ``n_draws``.

    Raises
    ------
    ValueError
        If an option is unknown, or ``observed`` is missing, not asked for, or has other rows.

    References
    ----------
    Holdout predictive checks for Bayesian model criticism (Moran, Blei and Ranganath, 2024).
    """
    for name, count in {"n_draws": n_draws, "n_samples": n_samples}.items():
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} must be a positive integer, got {count!r}.")
    local = _checked_mode(local, model)
    if scoring not in get_args(Scoring):
        raise ValueError(f'scoring must be "inferred" or "marginal", got {scoring!r}.')
    _require_observed(local, observed, batch)
    device = next(model.parameters()).device
    seen = None if observed is None else to_device(observed, device)
    units = Units(model, to_device(batch, device), local, seen, scoring, n_samples)
    return PredictiveDraws(units, n_draws, seed)


def _checked_mode(local: Local | None, model: ProbabilisticModel) -> Local:
    if local is None:
        return "covariates" if model.conditional else "prior"
    if local not in get_args(Local):
        raise ValueError(
            f'local must be "prior", "posterior", "observed" or "covariates", got {local!r}.'
        )
    if local == "covariates" and not model.conditional:
        raise ValueError(
            'local="covariates" is for models whose guide never sees the observations; the '
            f"latents of {type(model).__name__} are inferred from them."
        )
    return local


def _require_observed(local: Local, observed: AnyBatch | None, batch: AnyBatch) -> None:
    if (local == "observed") != (observed is not None):
        raise ValueError(
            'local="observed" needs observed=, the part of the units that their latents are '
            f"inferred from, and no other mode takes it; got local={local!r} and observed="
            f"{'None' if observed is None else 'a batch'}."
        )
    if observed is not None and observed.x.shape[0] != batch.x.shape[0]:
        raise ValueError(
            f"observed must have the {batch.x.shape[0]} units of the batch, "
            f"got {observed.x.shape[0]}."
        )
    masked = isinstance(observed, Batch) and observed.mask is not None
    if observed is not None and not masked and _same_data(observed.x, batch.x):
        raise ValueError(
            "observed holds the very data of the batch, so that latents would be inferred from "
            "what is compared; give the other half of the counts, or a mask that leaves the "
            "compared entries out."
        )


def _same_data(a: Tensor, b: Tensor) -> bool:
    if a.layout != torch.strided or b.layout != torch.strided:
        a, b = a.to_dense(), b.to_dense()
    return a.shape == b.shape and torch.equal(a, b.to(a))
