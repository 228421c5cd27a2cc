"""What the checks of a proxy found, by discrepancy and cell."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from probinterp.criticism.image_uniformity import ImageChecks
from probinterp.criticism.result import PopPCResult


@dataclass(frozen=True, eq=False)
class ProxyCheckResult:
    """Predictive checks of a proxy of a network; every discrepancy is a family of its own.

    Parameters
    ----------
    pooled
        Check of all images together by name of the discrepancy: a vector over cells.
    images
        p-values of every image and tests of their uniformity, by the same names.
    n_images
        Number of compared images, I, the units of the checks.
    n_tokens
        Number of tokens of an image, T.
    """

    pooled: Mapping[str, PopPCResult]
    images: Mapping[str, ImageChecks]
    n_images: int
    n_tokens: int

    @property
    def calibrated(self) -> bool:
        """Whether nothing is known that makes the p-values non-uniform under a correct proxy."""
        return all(result.calibrated for result in self.pooled.values())

    def p_family(self, name: str) -> Tensor:
        r"""p-values adjusted over the cells of a discrepancy, shape (C,).

        .. math:: \tilde p_c = \frac1{S + 1} \#\Big\{s: \max_{c'} |z_{sc'}| \ge |z_{0c}|\Big\}

        over the data (row 0) and the S replicates, all standardised together. Controls the
        family-wise error like Holm's correction, but with resolution 1 / (S + 1) however many
        cells there are: by Holm's no cell of m can be rejected at .05 with fewer than 40 m - 1
        draws.

        References
        ----------
        Resampling-based multiple testing (Westfall and Young, 1993), section 2.
        """
        result = self.pooled[name]
        rows = torch.cat([result.heldout, result.replicated]).double()
        difference = rows - rows.mean(0)
        z = torch.where(difference == 0, 0.0, difference / rows.std(0)).abs()
        # a cell with an infinite value has no spread: its infinite values are the extreme ones
        finite = rows.isfinite()
        z = torch.where(finite.all(0), z, torch.where(finite, 0.0, math.inf))
        return (z.amax(1).unsqueeze(1) >= z[0]).double().mean(0)

    def flagged(self, alpha: float = 0.05) -> dict[str, tuple[str, ...]]:
        """Cells rejected at family-wise level ``alpha``, by discrepancy, where there are any.

        With m discrepancies, pass ``alpha / m`` to bound the error of all together; that takes at
        least m / alpha draws.

        Raises
        ------
        ValueError
            If so few draws cannot reject anything at this level.
        """
        n_draws = min(len(result.replicated) for result in self.pooled.values())
        if alpha * (n_draws + 1) < 1 - 1e-9:
            raise ValueError(
                f"with {n_draws} replicates cells can be rejected at levels of 1 / {n_draws + 1} "
                f"and more, got {alpha:g}; take more draws."
            )
        found = {}
        for name in self.pooled:
            rejected = (self.p_family(name) <= alpha).tolist()
            cells = self._labels(name)
            if any(rejected):
                found[name] = tuple(c for c, r in zip(cells, rejected, strict=True) if r)
        return found

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary per discrepancy and cell, ready for a table of any library."""
        found = []
        for name, result in self.pooled.items():
            images = self.images[name]
            columns = {
                "heldout": result.heldout.double().mean(0),
                "replicated": result.replicated.double().mean(0),
                "z": result.z,
                "p": result.p_value,
                "mc_error": result.mc_error,
                "p_two_sided": result.p_two_sided,
                "p_holm": result.adjusted("holm"),
                "p_family": self.p_family(name),
                "ks": images.ks,
                "ks_p": images.ks_p,
                "ks_p_replicated": images.ks_p_replicated,
                "ad": images.ad,
                "ad_p": images.ad_p,
                "ad_p_replicated": images.ad_p_replicated,
            }
            for index, cell in enumerate(self._labels(name)):
                numbers = {column: float(v[index]) for column, v in columns.items()}
                found.append({"discrepancy": name, "cell": cell, **numbers})
        return found

    def minus(self, other: ProxyCheckResult) -> dict[str, Tensor]:
        """Difference of the one-sided p-values to another check, by discrepancy, shape (C,).

        For instance of the held-out check to the classical one of the training images.

        Raises
        ------
        ValueError
            If the two have not the same discrepancies and cells.
        """
        cells = {name: self._labels(name) for name in self.pooled}
        theirs = {name: other._labels(name) for name in other.pooled}
        if cells != theirs:
            raise ValueError(
                f"the checks differ in discrepancies or cells: {sorted(cells)} and "
                f"{sorted(theirs)}."
            )
        return {name: self.pooled[name].p_value - other.pooled[name].p_value for name in cells}

    def _labels(self, name: str) -> tuple[str, ...]:
        labels = self.pooled[name].labels
        assert labels is not None
        return labels
