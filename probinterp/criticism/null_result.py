"""What a posterior predictive null check returns."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from probinterp.criticism.divergence import Distance, kolmogorov_smirnov, symmetrised_kl

PASSING_SHARE = 0.5  # of A's replicates that B's check must accept for A to pass it


@dataclass(frozen=True, eq=False)
class NullCheckResult:
    r"""Outcome of a posterior predictive null check of M models with R replicates each.

    Matrices have the shape (M, M): row B is the model whose discrepancy is used, column A the
    model that replicates; the entry compares :math:`d_B(x^{rep}_A)` with
    :math:`d_B(x^{rep}_B)`, and the diagonal is NaN.

    Parameters
    ----------
    models
        Names, M of them, from the simplest to the richest.
    discrepancy
        Discrepancy of each model on the replicates of each, shape (M, M, R), float64.
    heldout
        Discrepancy of each model on the validation data, shape (M,), float64.
    notes
        What a reader of the p-values should know, in sentences.

    References
    ----------
    The Posterior Predictive Null (Moran, Cunningham and Blei, 2022).
    """

    models: tuple[str, ...]
    discrepancy: Tensor
    heldout: Tensor
    notes: tuple[str, ...] = ()

    @property
    def n_replicates(self) -> int:
        """Number of replicates per model, R."""
        return self.discrepancy.shape[-1]

    @cached_property
    def kl(self) -> Tensor:
        """Symmetrised Kullback-Leibler divergence of histograms in bits, shape (M, M)."""
        return self.divergence(symmetrised_kl)

    @cached_property
    def _ks(self) -> dict[tuple[int, int], Distance]:
        own = self.discrepancy
        pairs = [(b, a) for b in range(len(own)) for a in range(len(own)) if a != b]
        return {(b, a): kolmogorov_smirnov(own[b, a], own[b, b]) for b, a in pairs}

    @property
    def ks(self) -> Tensor:
        """Kolmogorov-Smirnov distance, 0 (cannot be told apart) to 1 (disjoint), (M, M)."""
        return self._matrix(lambda b, a: self._ks[b, a].value)

    @property
    def ks_error(self) -> Tensor:
        """Monte-Carlo standard error of :attr:`ks`, shape (M, M)."""
        return self._matrix(lambda b, a: self._ks[b, a].error)

    def divergence(self, measure: Callable[[Tensor, Tensor], float]) -> Tensor:
        """Compare every pair with a measure of one's own, ``measure(of_a, of_b)``; (M, M)."""
        own = self.discrepancy
        return self._matrix(lambda b, a: measure(own[b, a], own[b, b]))

    def acceptance(self, alpha: float = 0.05) -> Tensor:
        r"""Share of A's replicates that B's own two-sided check would accept, shape (M, M).

        A replicate is accepted if its rank p-value among B's replicates exceeds ``alpha``; about
        1 - alpha if B's discrepancy cannot tell A from B. The diagonal is NaN.

        Parameters
        ----------
        alpha
            Level of the check.

        Raises
        ------
        ValueError
            If there are too few replicates to reach ``alpha``.
        """
        if not 2 / (self.n_replicates + 1) <= alpha < 1:
            raise ValueError(
                f"alpha must lie between {2 / (self.n_replicates + 1):.2g} (the resolution of "
                f"{self.n_replicates} replicates) and 1, got {alpha}."
            )
        return self.divergence(lambda of_a, of_b: _accepted(of_a, of_b, alpha))

    @property
    def p_value(self) -> Tensor:
        r"""Held-out check of each model against itself, the smaller side, shape (M,).

        .. math:: \min\big(\Pr(d_B(x^{rep}_B) < d_B(x^{val})),
            \Pr(d_B(x^{rep}_B) > d_B(x^{val}))\big)

        At most .5, and 0 outside the replicates; see :attr:`p_two_sided` for tests.
        """
        own = self._own
        below = (own < self.heldout.unsqueeze(1)).double().mean(1)
        above = (own > self.heldout.unsqueeze(1)).double().mean(1)
        return torch.minimum(below, above)

    @property
    def mc_error(self) -> Tensor:
        r"""Monte-Carlo standard error of :attr:`p_value`, :math:`\sqrt{p (1 - p) / R}`, (M,)."""
        return (self.p_value * (1 - self.p_value) / self.n_replicates).sqrt()

    @property
    def p_two_sided(self) -> Tensor:
        """Two-sided p-value of the held-out check, at least 2 / (R + 1), shape (M,).

        The validation data count among the replicates and ties against the model's rejection.
        """
        pairs = zip(self.heldout, self._own, strict=True)
        return torch.stack([_rank_p_value(x, own) for x, own in pairs])

    @property
    def _own(self) -> Tensor:
        """Discrepancy of each model on its own replicates, shape (M, R)."""
        return torch.diagonal(self.discrepancy).mT

    def sentence(self, generator: str, judge: str, alpha: float = 0.05) -> str:
        """Say whether one model passes the check of another.

        Parameters
        ----------
        generator
            Name of the model A that replicates.
        judge
            Name of the model B whose discrepancy is used.
        alpha
            Level of B's check; A passes if B's check accepts at least half of A's replicates.

        Returns
        -------
        str
            One English sentence.

        Raises
        ------
        KeyError
            If a name is unknown.
        ValueError
            If the names are equal, or there are too few replicates for ``alpha``.
        """
        for name in (generator, judge):
            if name not in self.models:
                raise KeyError(f"no model {name!r}; models: {', '.join(self.models)}.")
        if generator == judge:
            raise ValueError(f"a null check compares two models, got {generator!r} twice.")
        b, a = self.models.index(judge), self.models.index(generator)
        share = self.acceptance(alpha)[b, a].item()
        ks = self._ks[b, a]
        found = "passes" if share >= PASSING_SHARE else "fails"
        return (
            f"{generator} {found} the check of {judge}: at level {alpha:g} "
            f"it accepts {share:.0%} of the replicates of {generator} "
            f"(KS distance {ks.value:.2f}, s.e. {ks.error:.2f}; {self.kl[b, a].item():.2f} bits)."
        )

    def preferred(self, alpha: float = 0.05) -> str | None:
        """Name the simplest model that does as well as the richer ones.

        Parameters
        ----------
        alpha
            Two-sided level of the held-out checks and of the checks between models.

        Returns
        -------
        str or None
            The first model, in the order given, that passes its own held-out check and the checks
            of all later models that pass theirs; None if every model fails its own.
        """
        accepted = self.acceptance(alpha)
        sound = [b for b, p in enumerate(self.p_two_sided.tolist()) if p > alpha]
        for a in sound:
            if all(accepted[b, a] >= PASSING_SHARE for b in sound if b > a):
                return self.models[a]
        return None

    def verdict(self, alpha: float = 0.05) -> str:
        """Say which models pass their own held-out check, and which of them to prefer.

        Parameters
        ----------
        alpha
            Level, as for :meth:`preferred`.
        """
        p_values = dict(zip(self.models, self.p_two_sided.tolist(), strict=True))
        checks = [
            f"{name} {'passes' if p > alpha else 'fails'} (two-sided p = {p:.2g})"
            for name, p in p_values.items()
        ]
        own = f"Held-out check of each model against itself: {', '.join(checks)}."
        best = self.preferred(alpha)
        if best is None:
            return " ".join([own, "No model can be preferred.", *self.notes])
        richer = [
            self.sentence(best, name, alpha)
            for name in self.models[self.models.index(best) + 1 :]
            if p_values[name] > alpha
        ]
        choice = f"{best} is the simplest that passes it and the checks of the richer ones that do."
        return " ".join([own, choice, *richer, *self.notes])

    def _matrix(self, entry: Callable[[int, int], float]) -> Tensor:
        n = len(self.models)
        rows = [[entry(b, a) if a != b else math.nan for a in range(n)] for b in range(n)]
        return torch.tensor(rows, dtype=torch.float64)


def _accepted(of_a: Tensor, of_b: Tensor, alpha: float) -> float:
    return (_rank_p_value(of_a, of_b) > alpha).double().mean().item()


def _rank_p_value(values: Tensor, replicated: Tensor) -> Tensor:
    """Two-sided p-value of each value among the replicates, ties counted on both sides."""
    ordered = replicated.sort().values
    at_least = len(ordered) - torch.searchsorted(ordered, values, right=False)
    at_most = torch.searchsorted(ordered, values, right=True)
    smaller = torch.minimum(at_least, at_most).double()
    return (2 * (smaller + 1) / (len(ordered) + 1)).clamp(max=1)
