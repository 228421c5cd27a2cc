"""Which features, units or groups fit worst, and whether all of them together fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from probinterp.criticism.multiplicity import Method

if TYPE_CHECKING:
    from probinterp.criticism.result import PopPCResult

Statistic = Literal["maximum", "sum", "ranks"]
INTERVAL = (0.05, 0.95)  # quantiles of the replicates in a ranking
RANKED = 2**18  # numbers ranked at a time: the ranks take little memory beside the rows


@dataclass(frozen=True)
class Ranking:
    r"""Values of a check in order of :math:`|z|`, largest first; every column has shape (m,).

    Values without an effect size come last.

    Parameters
    ----------
    labels
        Names of the values.
    z
        Effect size in standard deviations of the replicates; infinite where they do not vary, NaN
        where replicates are infinite or there is but one.
    heldout
        Discrepancy of the data.
    replicated
        Mean over replicates.
    low, high
        5 and 95 % quantiles of the replicates.
    p, p_adjusted
        Two-sided p-value that the verdict rests on, before and after adjustment.
    rejected
        Whether the adjusted p-value is at most the level.
    axis
        What the values stand for: ``"feature"``, ``"unit"``, ``"group"``, or ``"value"``.
    """

    labels: tuple[str, ...]
    z: Tensor
    heldout: Tensor
    replicated: Tensor
    low: Tensor
    high: Tensor
    p: Tensor
    p_adjusted: Tensor
    rejected: Tensor
    axis: str

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def n_rejected(self) -> int:
        """How many values are rejected."""
        return int(self.rejected.sum())

    def rows(self, n_top: int | None = None) -> list[dict[str, Any]]:
        """One dictionary a value, the worst first: ready for a table of any library.

        Parameters
        ----------
        n_top
            How many; all by default.
        """
        columns = "heldout replicated low high z p p_adjusted rejected".split()
        values = {name: getattr(self, name)[:n_top].tolist() for name in columns}
        return [
            {self.axis: label, **{name: values[name][i] for name in columns}}
            for i, label in enumerate(self.labels[:n_top])
        ]


def rank_values(
    result: PopPCResult, labels: Sequence[str] | None, method: Method, alpha: float
) -> Ranking:
    """Rank the values of a vector; see :meth:`PopPCResult.ranking`."""
    _require_vector(result, "a ranking")
    names = value_labels(result, labels)
    size = torch.where(result.z.isnan(), -1.0, result.z.abs())
    order = torch.argsort(size, descending=True, stable=True)
    replicated = result.replicated.double()
    p, adjusted = result.p_decision, result.adjusted(method)
    return Ranking(
        labels=tuple(names[i] for i in order.tolist()),
        z=result.z[order],
        heldout=result.heldout.double().mean(0)[order],
        replicated=replicated.mean(0)[order],
        low=_quantile(replicated, INTERVAL[0])[order],
        high=_quantile(replicated, INTERVAL[1])[order],
        p=p[order],
        p_adjusted=adjusted[order],
        rejected=(adjusted <= alpha)[order],
        axis=value_axis(result),
    )


def value_axis(result: PopPCResult) -> str:
    """What the values of a vector stand for, in one word."""
    if result.axis is not None:
        return result.axis
    return "feature" if result.uniform.numel() == result.n_features else "value"


def value_labels(result: PopPCResult, labels: Sequence[str] | None) -> list[str]:
    """Names of the values of a vector: the argument, those of the result, or their numbers."""
    n_values = result.uniform.numel()
    given = result.labels if labels is None else labels
    if given is None:
        return [f"{value_axis(result)} {i}" for i in range(n_values)]
    if len(given) != n_values:
        raise ValueError(f"labels must name {n_values} values, got {len(given)}.")
    return [str(label) for label in given]


def aggregate_p(result: PopPCResult, statistic: Statistic) -> float:
    """Rank p-value of all values together; see :meth:`PopPCResult.aggregate`."""
    if statistic not in get_args(Statistic):
        raise ValueError(
            f"statistic must be one of {', '.join(get_args(Statistic))}, got {statistic!r}."
        )
    _require_vector(result, "an aggregate test")
    if len(result.heldout) > 1:
        raise ValueError(
            "an aggregate test needs one value of the data for all replicates; "
            "a realised check has one for each. Use kind='plugin'."
        )
    rows = torch.cat([result.heldout, result.replicated]).double()
    size = _rank_scores(rows) if statistic == "ranks" else _standardised_sizes(rows, statistic)
    above, tied = (size[1:] > size[0]).sum(), (size[1:] == size[0]).sum()
    return float((above + result.uniform[0] * tied + 1) / (result.n_draws + 1))


def _standardised_sizes(rows: Tensor, statistic: Statistic) -> Tensor:
    """Largest absolute value, or sum of squares, of each row after columns are standardised."""
    difference = rows - rows.mean(0)
    scaled = torch.where(difference == 0, 0.0, difference / rows.std(0)).abs()
    # a column with an infinite entry has no spread: its infinite entries are the extreme ones
    finite = rows.isfinite()
    scaled = torch.where(finite.all(0), scaled, torch.where(finite, 0.0, math.inf))
    return scaled.amax(1) if statistic == "maximum" else scaled.square().sum(1)


def _rank_scores(rows: Tensor) -> Tensor:
    """Sum over columns of -log p, with p the two-sided mid-rank p-value within the column."""
    from scipy.stats import rankdata  # slow to import, seldom needed

    n_rows = len(rows)
    score = rows.new_zeros(n_rows)
    for block in rows.split(max(1, RANKED // n_rows), dim=1):
        values = block.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)
        rank = torch.from_numpy(rankdata(values.numpy(), axis=0))  # 1 to S + 1, equal ones averaged
        tail = torch.minimum(rank, n_rows + 1 - rank) - 0.5  # half of the value itself
        score -= (2 * tail / n_rows).log().sum(1)
    return score.round(decimals=9)  # sums of the same terms in another order are ties


def _require_vector(result: PopPCResult, what: str) -> None:
    if result.uniform.ndim == 0:
        raise ValueError(f"{what} needs several values, but {result.discrepancy} is one number.")


def _quantile(values: Tensor, q: float) -> Tensor:
    """Quantile over rows by order statistics: torch.quantile refuses large inputs."""
    position = q * (len(values) - 1)
    below = int(position)
    ordered = values.sort(0).values
    above = ordered[min(below + 1, len(values) - 1)]
    return ordered[below] + (above - ordered[below]) * (position - below)
