"""What a check returns: pointwise values, and the numbers and sentence made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from probinterp.criticism.draws import Local
from probinterp.criticism.multiplicity import Method, adjust
from probinterp.criticism.ranking import Ranking, Statistic, aggregate_p, rank_values
from probinterp.criticism.refit_p import rank_two_sided, refit_rank_p, refit_t_p
from probinterp.criticism.regime import REGIME_WARNING
from probinterp.criticism.verdict import Verdict, find_verdict

Kind = Literal["plugin", "predictive", "realised"]
Check = Literal["pop-pc", "ppc"]
Axis = Literal["feature", "unit", "group"]


@dataclass(frozen=True, eq=False)
class PopPCResult:
    r"""Outcome of a predictive check; shapes (...) are () or (G,), as the discrepancy's.

    With :math:`d^{rep}_s` and :math:`d^{new}_s` the discrepancies of replicate s and of the
    compared data, a small ``p_value`` means that the data have a larger discrepancy than the
    model expects. All tensors lie on the CPU; what is computed from them is float64.

    Parameters
    ----------
    check
        ``"pop-pc"`` (compared with held-out data) or ``"ppc"`` (with the data of the fit).
    discrepancy
        Name of the discrepancy.
    kind
        Where the discrepancy is evaluated, see :func:`probinterp.criticism.pop_pc`.
    heldout
        Discrepancy of the compared data, shape (S, ...) for ``kind="realised"``, else (1, ...).
    replicated
        Discrepancy of each replicate, shape (S, ...).
    uniform
        The uniform number that breaks ties, one per p-value, shape (...).
    n_new, n_features
        Units of the compared data and entries of each.
    n_obs
        Size of the data of the fit, if known.
    seed
        Seed of ``uniform`` and of draws that use torch's global generator.
    reference
        Where the reference came from, in words.
    local
        How the replicate's local latents were drawn: from their ``"prior"``, from their
        ``"posterior"`` given the compared data themselves, given an ``"observed"`` part of the
        same units that is not compared, given ``"covariates"`` alone, or None where the draws do
        not say.
    regime
        Regime number of a realised held-out check, else None.
    calibrated
        False where something known makes the p-value non-uniform under a correct model.
    notes
        What a reader of the p-value should know, in sentences.
    axis
        What the values of a vector stand for; None for a single number or where it is unknown.
    labels
        Names of the values of a vector, or None.
    refitted
        Excess discrepancies t* of data simulated from the fit and fitted anew, shape (B, ...), or
        None without refit calibration.
    n_effective
        Effective number of draws where they are autocorrelated, or None.

    References
    ----------
    Population predictive checks (Ranganath and Blei, 2019); Holdout predictive checks for
    Bayesian model criticism (Moran, Blei and Ranganath, 2024).
    """

    check: Check
    discrepancy: str
    kind: Kind
    heldout: Tensor
    replicated: Tensor
    uniform: Tensor
    n_new: int
    n_features: int
    n_obs: int | None
    seed: int
    reference: str
    local: Local | None
    regime: float | None
    calibrated: bool
    notes: tuple[str, ...]
    axis: Axis | None = None
    labels: tuple[str, ...] | None = None
    refitted: Tensor | None = None
    n_effective: float | None = None

    @property
    def n_draws(self) -> int:
        """Number of replicates, S."""
        return len(self.replicated)

    @cached_property
    def _above(self) -> Tensor:
        return (self.replicated > self.heldout).sum(0).double()

    @cached_property
    def _tied(self) -> Tensor:
        return (self.replicated == self.heldout).sum(0).double()

    @property
    def p_value(self) -> Tensor:
        r"""Share of replicates at least as extreme, :math:`\#\{d^{rep} \ge d^{new}\} / S`."""
        return (self._above + self._tied) / self.n_draws

    @property
    def p_randomised(self) -> Tensor:
        r""":math:`(\#\{d^{rep} > d^{new}\} + U \#\{d^{rep} = d^{new}\}) / S`, ties broken."""
        return (self._above + self.uniform * self._tied) / self.n_draws

    @property
    def p_rank(self) -> Tensor:
        r""":math:`(\#\{d^{rep} > d^{new}\} + U (\#\{d^{rep} = d^{new}\} + 1)) / (S + 1)`.

        Exactly uniform when the compared value is exchangeable with the replicated ones, at
        any S and with ties; for calibration studies and Kolmogorov-Smirnov tests.
        """
        return (self._above + self.uniform * (self._tied + 1)) / (self.n_draws + 1)

    @property
    def p_two_sided(self) -> Tensor:
        r"""Two-sided p-value, never below its resolution 2 / (S + 1).

        .. math:: \min\Big(1, \frac{2}{S + 1} \min(\#_> + U \#_= + 1, \#_< + (1 - U) \#_= + 1)\Big)

        Twice the smaller one-sided ``p_randomised`` with the observed value counted among the
        replicates, which makes it a valid p-value at any S: Pr(p <= a) <= a, with equality
        up to 2 / (S + 1).
        """
        return rank_two_sided(self._above, self._tied, self.uniform, self.n_draws)

    @property
    def excess(self) -> Tensor:
        r"""Excess discrepancy of the data, :math:`t = \bar d^{new} - \bar d^{rep}`, shape (...)."""
        return self.heldout.double().mean(0) - self.replicated.double().mean(0)

    @property
    def p_refit(self) -> Tensor | None:
        r"""Two-sided rank of the excess among those of the refits, resolution 2 / (B + 1).

        The one p-value of point-estimated globals that is calibrated whatever ``n_new`` is.
        """
        if self.refitted is None:
            return None
        return refit_rank_p(self.refitted, self.excess, self.uniform)

    @property
    def p_refit_t(self) -> Tensor | None:
        r"""Two-sided p-value of the excess from a normal law of few refits.

        .. math:: 2 \Pr\Big(T_{B-1} \ge \frac{|t - \bar t^*|}{s^* \sqrt{1 + 1 / B}}\Big)

        Needs far fewer refits than the rank, and that t* is close to normal. Where t* does not vary
        over refits it is the rank.
        """
        if self.refitted is None:
            return None
        return refit_t_p(self.refitted, self.excess, self.uniform)

    @property
    def decided_by(self) -> Literal["draws", "refit rank", "refit t"]:
        """Which p-value the decision rests on.

        ``p_two_sided`` without refits; with them ``p_refit``, or ``p_refit_t`` where the rank among
        so few refits could reject nothing at a level of .05.
        """
        if self.refitted is None:
            return "draws"
        resolves = 2 * self.uniform.numel() <= 0.05 * (len(self.refitted) + 1)
        return "refit rank" if resolves else "refit t"

    @property
    def p_decision(self) -> Tensor:
        """Two-sided p-value that adjustment and verdict rest on, see ``decided_by``."""
        p = {"draws": self.p_two_sided, "refit rank": self.p_refit, "refit t": self.p_refit_t}
        found = p[self.decided_by]
        assert found is not None
        return found

    def adjusted(self, method: Method = "bh") -> Tensor:
        """``p_decision`` adjusted over the values of a vector.

        Parameters
        ----------
        method
            ``"bh"``: Benjamini and Hochberg, false discovery rate; ``"holm"``: Holm, family-wise
            error under any dependence.
        """
        return adjust(self.p_decision, method)

    @property
    def p_adjusted(self) -> Tensor:
        """``p_decision`` adjusted over features by Benjamini and Hochberg, shape (...)."""
        return self.adjusted()

    @property
    def mc_error(self) -> Tensor:
        r"""Monte-Carlo standard error of ``p_value``, :math:`\sqrt{p (1 - p) / S}`.

        S is the effective number of draws where it is known; otherwise the error is too small
        for autocorrelated draws (a Markov chain).
        """
        n_draws = min(self.n_draws, self.n_effective or math.inf)
        return (self.p_value * (1 - self.p_value) / n_draws).sqrt()

    @cached_property
    def z(self) -> Tensor:
        r"""Effect size :math:`(\bar d^{new} - \bar d^{rep}) / \mathrm{sd}(d^{rep})`.

        In standard deviations (divisor S - 1) of the replicates, positive when the data have
        the larger discrepancy. 0 where both means agree although the replicates do not vary,
        infinite where they differ; NaN for a single replicate and where replicates are infinite.
        """
        replicated = self.replicated.double()
        difference = self.excess
        if self.n_draws == 1:
            return torch.full_like(difference, math.nan)
        return torch.where(difference == 0, 0.0, difference / replicated.std(0))

    @property
    def n_new_in_regime(self) -> int | None:
        """Held-out size at which the regime number would be at most .2, None where it is."""
        if self.regime is None or self.regime <= REGIME_WARNING:
            return None
        return math.floor(self.n_new * (REGIME_WARNING / self.regime) ** 2)

    def ranking(
        self, labels: Sequence[str] | None = None, *, method: Method = "bh", alpha: float = 0.05
    ) -> Ranking:
        """Values of a vector in order of their effect size, the worst fit first.

        Parameters
        ----------
        labels
            Names of the values; default those of the result, else their numbers from 0.
        method, alpha
            How p-values are adjusted, and the level at which they are rejected.

        Raises
        ------
        ValueError
            If the result is a single number, or there are not as many labels as values.
        """
        return rank_values(self, labels, method, alpha)

    def aggregate(self, statistic: Statistic = "maximum") -> float:
        r"""One p-value for all values of a vector together, whatever their dependence.

        The statistic of the data is ranked among those of the replicates, every row of values
        standardised, or ranked, within all S + 1 rows: exactly uniform on the multiples of
        1 / (S + 1) when the data are exchangeable with the replicates. Infinite values are more
        extreme than all others.

        Parameters
        ----------
        statistic
            ``"maximum"``: the largest :math:`|z_j|`, for one value far off; weak where replicates
            have heavy tails, since one replicate alone may lie :math:`\sqrt{S}` sd out.
            ``"sum"``: the sum of squares. ``"ranks"``: Fisher's sum for many values a little off,
            blind to how far off one value is,

            .. math:: -\sum_j \log p_j, \quad
                p_j = \frac{2}{S + 1} \min(r_j - \tfrac12,\; S + \tfrac32 - r_j)

            with :math:`r_j` the rank of value j among the S + 1, equal ones averaged.

        Raises
        ------
        ValueError
            If the result is a single number, or of a realised check.

        References
        ----------
        Statistical Methods for Research Workers (Fisher, 1932), section 21.1.
        """
        return aggregate_p(self, statistic)

    def verdict(
        self,
        alpha: float = 0.05,
        *,
        labels: Sequence[str] | None = None,
        method: Method = "bh",
        noun: str | None = None,
    ) -> Verdict:
        """Say what fails, how badly and with what certainty.

        Parameters
        ----------
        alpha
            Level of the two-sided test, or of the adjusted p-values of a vector.
        labels
            Names of the values of a vector; default those of the result.
        method
            Adjustment over the values of a vector.
        noun
            What one value of a vector is called, for instance ``"gene"``; default its axis.

        Returns
        -------
        Verdict
            Its ``str`` is one English sentence. No verdict is given for a realised check out of
            its regime, or when there are too few draws to reach ``alpha``. Values that are too
            many for the draws are judged together by ``aggregate("ranks")``.

        Raises
        ------
        ValueError
            If ``alpha`` does not lie between 0 and 1, or labels do not fit.
        """
        return find_verdict(self, alpha, labels, method, noun)

    def summary(self, alpha: float = 0.05) -> dict[str, Any]:
        """Plain numbers, strings and lists, ready for JSON; values per feature are lists.

        Parameters
        ----------
        alpha
            Level of the verdict.

        Returns
        -------
        dict
            The settings, p-values, effect size, Monte-Carlo error and verdict; without the
            pointwise values. Infinite numbers and NaN, which JSON lacks, are None.
        """
        settings = (
            "check discrepancy kind n_draws n_new n_features n_obs seed reference local regime "
            "calibrated axis n_effective"
        ).split()
        values = "p_value p_randomised p_rank p_two_sided p_decision p_adjusted mc_error z".split()
        return (
            {name: _json(getattr(self, name)) for name in settings}
            | {name: _plain(getattr(self, name)) for name in values}
            | {
                "heldout": _plain(self.heldout.double().mean(0)),
                "replicated": _plain(self.replicated.double().mean(0)),
                "notes": list(self.notes),
                "n_refits": None if self.refitted is None else len(self.refitted),
                "verdict": str(self.verdict(alpha)),
            }
        )


def _plain(values: Tensor) -> Any:
    numbers = [_json(value) for value in values.flatten().tolist()]
    return numbers if values.ndim else numbers[0]


def _json(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
