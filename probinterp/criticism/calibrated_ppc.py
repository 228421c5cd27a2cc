"""Posterior predictive p-values calibrated by nested simulation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from probinterp.criticism.draws import Discrepancy, PredictiveDraw
from probinterp.criticism.multiplicity import adjust
from probinterp.criticism.parallel import seeded_map, spawn_seeds
from probinterp.criticism.pop_pc import ppc
from probinterp.criticism.refit_p import rank_two_sided
from probinterp.criticism.refits import Refits
from probinterp.criticism.result import Kind, PopPCResult


class CalibratedPPCResult(NamedTuple):
    r"""A posterior predictive p-value beside those of data simulated from the fitted model.

    Parameters
    ----------
    observed
        The check of the observed data; its own p-values are not calibrated.
    p_refits
        Posterior predictive p-values ``p_randomised`` of the B refits, shape (B, ...).
    uniform
        The uniform number that breaks ties with the refits, shape (...).
    seed
        Seed of refits and checks.

    References
    ----------
    Post-processing posterior predictive p values (Hjort, Dahl and Steinbakk, 2006).
    """

    observed: PopPCResult
    p_refits: Tensor
    uniform: Tensor
    seed: int

    @property
    def n_refits(self) -> int:
        """Number of refits, B."""
        return len(self.p_refits)

    @property
    def p_value(self) -> Tensor:
        r"""Rank of the observed p-value, :math:`(\#\{p^* < p\} + U(\#\{p^* = p\} + 1)) / (B + 1)`.

        One-sided like the p-value it calibrates: small when the data have a larger discrepancy
        than the model explains. Uniform where the distribution of p does not depend on theta,
        approximately so where the fit is close to the truth.
        """
        below, tied = self._counts()
        return (below + self.uniform * (tied + 1)) / (self.n_refits + 1)

    @property
    def p_two_sided(self) -> Tensor:
        """Twice the smaller one-sided rank, with resolution 2 / (B + 1)."""
        below, tied = self._counts()
        return rank_two_sided(below, tied, self.uniform, self.n_refits)

    @property
    def p_adjusted(self) -> Tensor:
        """``p_two_sided`` adjusted over features by Benjamini and Hochberg, shape (...)."""
        return adjust(self.p_two_sided)

    @property
    def mc_error(self) -> Tensor:
        r"""Monte-Carlo standard error of ``p_value``, :math:`\sqrt{p (1 - p) / B}`."""
        return (self.p_value * (1 - self.p_value) / self.n_refits).sqrt()

    def _counts(self) -> tuple[Tensor, Tensor]:
        p = self.observed.p_randomised
        return (self.p_refits < p).sum(0).double(), (self.p_refits == p).sum(0).double()


def calibrated_ppc(
    draws: Iterable[PredictiveDraw],
    x_obs: Tensor,
    discrepancy: Discrepancy,
    refits: Refits,
    *,
    n_refits: int = 99,
    kind: Kind = "plugin",
    n_reference: int = 32,
    seed: int = 0,
    n_jobs: int | None = None,
) -> CalibratedPPCResult:
    r"""Posterior predictive check, calibrated by repeating it on data the model simulates.

    .. math:: p_{cal} = \Pr\big(\mathrm{ppp}(x^*) \le \mathrm{ppp}(x^{obs})\big), \qquad
        x^* \sim p(x \mid \hat\theta)

    The p-value of a check that uses the data twice is not uniform; its distribution under the
    fitted model is what it is compared with. That repairs the size of the check, not its loss of
    power where the model fits the statistic by construction.

    Parameters
    ----------
    draws
        Posterior draws that replicate data of the size of ``x_obs``, as for :func:`ppc`.
    x_obs
        The data of the fit, shape (N, G).
    discrepancy
        As for :func:`pop_pc`.
    refits
        How to simulate and refit, see :class:`Refits`. ``simulate(seed)[0]`` stands for
        ``x_obs``, and ``fit(x, x, seed)`` must return draws that replicate it, as those of
        refits whose new data have the size and covariates of the observed data do.
    n_refits
        Number of refits, B; the smallest two-sided p-value is 2 / (B + 1).
    kind, n_reference
        As for :func:`ppc`.
    seed
        Seed of refits and checks; the same bits on every joblib backend.
    n_jobs
        Refits at a time, as in ``joblib.Parallel``; ``joblib.parallel_config`` chooses where.

    Returns
    -------
    CalibratedPPCResult
        The check, the p-values of the refits, and the calibrated p-value.

    Raises
    ------
    TypeError
        If ``refits`` lacks a method, or as :func:`ppc`.
    ValueError
        If ``n_refits`` is not positive, the simulated data have another shape than ``x_obs``, the
        refits another number of draws (their p-values would be another resolution's), or as
        :func:`ppc`.

    References
    ----------
    Post-processing posterior predictive p values (Hjort, Dahl and Steinbakk, 2006);
    Asymptotic distribution of p values in composite null models (Robins, van der Vaart and
    Ventura, 2000).
    """
    if not isinstance(refits, Refits):
        raise TypeError(
            "refits must have the methods simulate(seed) and fit(x_obs, x_new, seed), "
            f"got a {type(refits).__name__}."
        )
    if n_refits < 1:
        raise ValueError(f"n_refits must be at least 1, got {n_refits}.")
    tie_seed, check_seed, refit_seed = np.random.SeedSequence(seed).generate_state(3).tolist()
    observed = ppc(draws, x_obs, discrepancy, kind=kind, n_reference=n_reference, seed=check_seed)
    shape, n_draws = tuple(x_obs.shape), observed.n_draws
    check = _CheckRefit(refits, shape, n_draws, discrepancy, kind, n_reference)
    rows = seeded_map(check, range(n_refits), seed=refit_seed, n_jobs=n_jobs)
    generator = torch.Generator().manual_seed(tie_seed)
    uniform = torch.rand(observed.uniform.shape, generator=generator, dtype=torch.float64)
    return CalibratedPPCResult(observed, torch.stack(rows), uniform, seed)


@dataclass(frozen=True)
class _CheckRefit:
    """Simulation, refit and check of one set; a class so that processes can be sent it."""

    refits: Refits
    shape: tuple[int, ...]
    n_draws: int
    discrepancy: Discrepancy
    kind: Kind
    n_reference: int

    def __call__(self, number: int, seed: int) -> Tensor:
        simulate_seed, fit_seed, check_seed = spawn_seeds(seed, 3)
        x, _ = self.refits.simulate(simulate_seed)
        if tuple(x.shape) != self.shape:
            raise ValueError(
                f"simulate(seed)[0] must have the shape of x_obs, {self.shape}, "
                f"got {tuple(x.shape)} in refit {number}."
            )
        draws = self.refits.fit(x, x, fit_seed)
        result = ppc(
            draws,
            x,
            self.discrepancy,
            kind=self.kind,
            n_reference=self.n_reference,
            seed=check_seed,
        )
        if result.n_draws != self.n_draws:
            raise ValueError(
                "refits must have as many replicating draws as the observed check, "
                f"{self.n_draws}, got {result.n_draws} in refit {number}."
            )
        return result.p_randomised
