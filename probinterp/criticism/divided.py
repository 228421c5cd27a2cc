"""Divided predictive checks: many disjoint blocks, one test that their p-values are uniform."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from probinterp.criticism.draws import Discrepancy
from probinterp.criticism.findings import Finding, merged_notes, stacked
from probinterp.criticism.holdout import Holdout, Indices, Labels, label_codes
from probinterp.criticism.result import Kind, PopPCResult
from probinterp.criticism.split_check import (
    CheckSplit,
    SplitFit,
    check_splits,
    require_comparable,
)
from probinterp.criticism.verdict import Verdict


class DividedResult(NamedTuple):
    r"""Predictive checks of K disjoint blocks; shapes (...) are those of the discrepancy.

    Parameters
    ----------
    blocks
        The check of each block.
    design
        Training and held-out units of each block.
    n_dropped
        Units in no block, since all blocks have the same number of units (or groups).
    seed
        Seed of blocks, splits, fits and checks.

    References
    ----------
    Calibrated model criticism using split predictive checks (Li and Huggins, 2022).
    """

    blocks: tuple[PopPCResult, ...]
    design: tuple[Holdout, ...]
    n_dropped: int
    seed: int

    @property
    def p_rank(self) -> Tensor:
        """One-sided rank p-value of each block, shape (K, ...); uniform under a correct model."""
        return stacked([block.p_rank for block in self.blocks])

    @property
    def z(self) -> Tensor:
        """Effect size of each block in sd of its replicates, shape (K, ...)."""
        return stacked([block.z for block in self.blocks])

    @property
    def mean_z(self) -> Tensor:
        """Average effect size over blocks, shape (...)."""
        return self.z.mean(0)

    @property
    def ks_distance(self) -> Tensor:
        r"""Kolmogorov distance of the K p-values to uniform, :math:`\sup_u |F_K(u) - u|`, (...)."""
        return self._kolmogorov()[0]

    @property
    def p_value(self) -> Tensor:
        """p-value of the Kolmogorov-Smirnov test of uniformity, exact for K values, shape (...).

        Read it one-sidedly: a small value is misfit, a value near 1 is not.
        """
        return self._kolmogorov()[1]

    @property
    def calibrated(self) -> bool:
        """Whether no block has something that makes its p-value non-uniform."""
        return all(block.calibrated for block in self.blocks)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know, in sentences."""
        return merged_notes(self.blocks)

    def _kolmogorov(self) -> tuple[Tensor, Tensor]:
        from scipy.stats import kstest  # slow to import, seldom needed

        p = self.p_rank
        columns = p.reshape(len(p), -1).numpy().T
        found = torch.tensor([kstest(column, "uniform") for column in columns])
        distance, p_value = found.double().T.reshape(2, *p.shape[1:])
        return distance, p_value

    def verdict(self, alpha: float = 0.05) -> Verdict:
        """Say in one sentence what the blocks show together, from ``p_value``.

        Raises
        ------
        ValueError
            If ``alpha`` does not lie between 0 and 1.
        """
        name = "Kolmogorov-Smirnov p of uniform p-values"
        return Finding(self.blocks, "blocks", self.p_value, name, self.mean_z, 0.0).verdict(alpha)


def divided_check(
    fit: SplitFit,
    n: int,
    discrepancy: Discrepancy,
    *,
    n_blocks: int | None = None,
    groups: Labels | None = None,
    kind: Kind = "plugin",
    n_reference: int = 32,
    seed: int = 0,
    n_jobs: int | None = None,
) -> DividedResult:
    r"""Split each of many disjoint blocks in half, check, and test the p-values for uniformity.

    The blocks have no unit in common, so under a correct model their rank p-values are
    independent and uniform; unlike a single split, the check finds p-values that vary too little
    as well as too much. Blocks are small, so that priors weigh in: a prior that shifts the
    p-values of all blocks a little makes their joint test reject a correct model too often.

    Parameters
    ----------
    fit
        Function ``(train, heldout, seed) -> (draws, x_new)``, see :class:`SplitFit`; called once
        per block with indices into all n units.
    n
        Number of units, N.
    discrepancy
        A scalar, or one value per feature, as for :func:`pop_pc`. Realised kinds break the check:
        blocks are small, their regime numbers large.
    n_blocks
        Number of blocks K; default :math:`\lfloor N^{0.49} \rfloor`, with groups
        :math:`\lfloor \sqrt I \rfloor` for I groups. Blocks have
        :math:`\lfloor N / K \rfloor` units; the rest is dropped at random.
    groups
        Label of each unit, (n,): blocks are then made of :math:`\lfloor I / K \rfloor` whole
        groups, half of which are held out.
    kind, n_reference
        As for :func:`pop_pc`.
    seed
        Seed of blocks, splits, fits and checks; the same bits on every joblib backend.
    n_jobs
        Blocks at a time, as in ``joblib.Parallel``; ``joblib.parallel_config`` chooses where.

    Returns
    -------
    DividedResult
        The check of each block and the test of uniformity.

    Raises
    ------
    TypeError, ValueError
        As :func:`pop_pc`, for one value per unit, and if there are fewer than two blocks or a
        block has fewer than two units or groups.

    Warns
    -----
    CriticismWarning
        As :func:`pop_pc`, each category once for all blocks.

    References
    ----------
    Calibrated model criticism using split predictive checks (Li and Huggins, 2022).
    """
    require_comparable(discrepancy)
    codes = np.arange(n) if groups is None else label_codes(groups, n, "groups")
    design, n_dropped = _halved_blocks(codes, n_blocks, groups is not None, seed)
    check = CheckSplit(fit, discrepancy, kind, n_reference)
    blocks = check_splits(check, design, seed=seed, n_jobs=n_jobs)
    return DividedResult(blocks, design, n_dropped, seed)


def _halved_blocks(
    codes: Indices, n_blocks: int | None, grouped: bool, seed: int
) -> tuple[tuple[Holdout, ...], int]:
    """Blocks of equally many codes, the first half of each for the fit, and what was dropped."""
    n_codes = int(codes.max(initial=-1)) + 1
    what = "groups" if grouped else "units"
    if n_blocks is None:
        n_blocks = math.floor(n_codes**0.5 if grouped else n_codes**0.49)
    if not 2 <= n_blocks <= n_codes // 2:
        raise ValueError(
            "a divided check needs at least 2 blocks and 2 units (or groups) in each; "
            f"got {n_blocks} blocks of {n_codes} {what}."
        )
    size = n_codes // n_blocks
    order = np.random.default_rng(seed).permutation(n_codes)[: size * n_blocks]
    design = []
    for block in order.reshape(n_blocks, size):
        train, heldout = (
            torch.from_numpy(np.flatnonzero(np.isin(codes, part)))
            for part in np.split(block, [size - size // 2])
        )
        design.append(Holdout(f"block of {what}", seed, 0.5, train, heldout))
    used = sum(split.n_train + split.n_heldout for split in design)
    return tuple(design), len(codes) - used
