"""What a check returns: pointwise values, and the numbers and sentence made of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

Kind = Literal["plugin", "predictive", "realised"]
Check = Literal["pop-pc", "ppc"]
Local = Literal["prior", "posterior"]

REGIME_WARNING, REGIME_REFUSAL = 0.2, 1.0


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
        Shape of the compared data.
    n_obs
        Size of the data of the fit, if known.
    seed
        Seed of ``uniform`` and of draws that use torch's global generator.
    reference
        Where the reference came from, in words.
    local
        How the replicate's local latents were drawn: ``"prior"``, ``"posterior"``, or None
        where the draws do not say.
    regime
        Regime number of a realised held-out check, else None.
    calibrated
        False where something known makes the p-value non-uniform under a correct model.
    notes
        What a reader of the p-value should know, in sentences.

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
        up to 1 / (S + 1).
        """
        upper = self._above + self.uniform * self._tied + 1
        lower = self.n_draws + 2 - upper
        return (2 * torch.minimum(upper, lower) / (self.n_draws + 1)).clamp(max=1)

    @property
    def p_adjusted(self) -> Tensor:
        """Two-sided p-values adjusted over features by Benjamini and Hochberg, shape (...)."""
        if self.uniform.ndim == 0:
            return self.p_two_sided
        from scipy.stats import false_discovery_control  # slow to import, seldom needed

        return torch.as_tensor(false_discovery_control(self.p_two_sided.numpy()))

    @property
    def mc_error(self) -> Tensor:
        r"""Monte-Carlo standard error of ``p_value``, :math:`\sqrt{p (1 - p) / S}`.

        For autocorrelated draws (a Markov chain) it is too small.
        """
        return (self.p_value * (1 - self.p_value) / self.n_draws).sqrt()

    @cached_property
    def z(self) -> Tensor:
        r"""Effect size :math:`(\bar d^{new} - \bar d^{rep}) / \mathrm{sd}(d^{rep})`.

        In standard deviations (divisor S - 1) of the replicates, positive when the data have
        the larger discrepancy. 0 where both means agree although the replicates do not vary,
        infinite where they differ; NaN for a single replicate.
        """
        replicated = self.replicated.double()
        difference = self.heldout.double().mean(0) - replicated.mean(0)
        if self.n_draws == 1:
            return torch.full_like(difference, math.nan)
        return torch.where(difference == 0, 0.0, difference / replicated.std(0))

    def verdict(self, alpha: float = 0.05) -> str:
        """Say in one sentence what the check found.

        Parameters
        ----------
        alpha
            Level of the two-sided test, or false discovery rate over features.

        Returns
        -------
        str
            One English sentence. No verdict is given for a realised check out of its regime,
            or when there are too few draws to reach ``alpha``.

        Raises
        ------
        ValueError
            If ``alpha`` does not lie between 0 and 1.
        """
        if not 0 < alpha < 1:
            raise ValueError(f"alpha must lie between 0 and 1, got {alpha}.")
        resolution = 2 / (self.n_draws + 1)
        realised = self.kind == "realised" and self.check == "pop-pc"
        if realised and (self.regime is None or self.regime > REGIME_REFUSAL):
            number = "is unknown" if self.regime is None else f"{self.regime:.3g} is above 1"
            return (
                f"No verdict on {self.discrepancy}: the regime number {number}, so that this "
                "realised check is power-limited or degenerate; use kind='plugin'."
            )
        if resolution > alpha:
            return (
                f"No verdict on {self.discrepancy}: {self.n_draws} draws cannot give a p-value "
                f"below {resolution:.2g}, and the level is {alpha:g}."
            )
        finding = self._overall(alpha) if self.uniform.numel() == 1 else self._each(alpha)
        return finding + ("." if self.calibrated else "; the p-value is not calibrated.")

    @property
    def _data(self) -> str:
        return "held-out" if self.check == "pop-pc" else "fitted"

    def _overall(self, alpha: float) -> str:
        p, z = self.p_two_sided.item(), self.z.item()
        found = "shows misfit" if p <= alpha else "shows no misfit"
        side = "above" if z >= 0 else "below"
        return (
            f"{self.discrepancy} {found}: its {self._data} value "
            f"{self.heldout.double().mean().item():.4g} lies {abs(z):.2g} sd {side} the mean of "
            f"{self.n_draws} replicates (two-sided p = {p:.2g})"
        )

    def _each(self, alpha: float) -> str:
        failing = int((self.p_adjusted <= alpha).sum())
        noun = "feature" if self.uniform.numel() == self.n_features else "value"
        found = f"shows misfit in {failing}" if failing else "shows no misfit in any"
        worst = int(self.z.abs().argmax())
        return (
            f"{self.discrepancy} {found} of {self.uniform.numel()} {noun}s of the {self._data} "
            f"data at a false discovery rate of {alpha:g}; the largest effect is "
            f"{self.z[worst].item():+.2g} sd at {noun} {worst} ({self.n_draws} replicates)"
        )

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
            "calibrated"
        ).split()
        values = "p_value p_randomised p_rank p_two_sided p_adjusted mc_error z".split()
        return (
            {name: getattr(self, name) for name in settings}
            | {name: _plain(getattr(self, name)) for name in values}
            | {
                "heldout": _plain(self.heldout.double().mean(0)),
                "replicated": _plain(self.replicated.double().mean(0)),
                "notes": list(self.notes),
                "verdict": self.verdict(alpha),
            }
        )


def _plain(values: Tensor) -> Any:
    numbers = [v if math.isfinite(v) else None for v in values.flatten().tolist()]
    return numbers if values.ndim else numbers[0]
