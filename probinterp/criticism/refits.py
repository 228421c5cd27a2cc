"""Refit calibration: the check against its own distribution over data that the fit simulates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from probinterp.criticism.draws import PredictiveDraw
from probinterp.criticism.parallel import seeded_map, spawn_seeds


@runtime_checkable
class Refits(Protocol):
    """How to repeat the whole analysis on data simulated from the fitted model.

    Both methods must depend on their arguments alone, so that every joblib backend gives the
    same bits, and be picklable where the backend uses processes.
    """

    def simulate(self, seed: int) -> tuple[Tensor, Tensor]:
        """Data of the fit and held-out data, both drawn from the fitted model."""
        ...

    def fit(self, x_obs: Tensor, x_new: Tensor, seed: int) -> Iterable[PredictiveDraw]:
        """Fit to ``x_obs`` and return draws that replicate data like ``x_new``.

        The fit may see the size and covariates of ``x_new``, never its values.
        """
        ...


Excess = Callable[[Iterable[PredictiveDraw], Tensor, int], Mapping[str, Tensor]]


def refitted_excess(
    refits: Refits, excess: Excess, n_refits: int, *, seed: int, n_jobs: int | None
) -> dict[str, Tensor]:
    r"""Distribution of the excess discrepancy under the fitted model, fitting error included.

    .. math:: t^*_b = d(x^{new*}_b; \hat\theta^*_b) - E_{rep}\, d(x^{rep}_b; \hat\theta^*_b), \qquad
        (x^{obs*}_b, x^{new*}_b) \sim p(x \mid \hat\theta), \quad
        \hat\theta^*_b = \mathrm{fit}(x^{obs*}_b)

    Parameters
    ----------
    refits
        How to simulate and refit.
    excess
        Maps draws, held-out data and a seed to the excess t of every discrepancy, by name.
    n_refits
        Number of refits, B.
    seed
        Seed of all of them.
    n_jobs
        As in ``joblib.Parallel``; the backend is the caller's, see ``joblib.parallel_config``.

    Returns
    -------
    dict
        t* by name, shape (B, ...).
    """
    if not isinstance(refits, Refits):
        raise TypeError(
            "refits must have the methods simulate(seed) and fit(x_obs, x_new, seed), "
            f"got a {type(refits).__name__}."
        )
    again: Callable[[int, int], Mapping[str, Tensor]] = _Repetition(refits, excess)
    rows = seeded_map(again, range(n_refits), seed=seed, n_jobs=n_jobs)
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


@dataclass(frozen=True)
class _Repetition:
    """The whole analysis on data simulated from the fit; a class so that it can be pickled."""

    refits: Refits
    excess: Excess

    def __call__(self, index: int, seed: int) -> Mapping[str, Tensor]:
        simulate, fit, check = spawn_seeds(seed, 3)
        x_obs, x_new = self.refits.simulate(simulate)
        return self.excess(self.refits.fit(x_obs, x_new, fit), x_new, check)
