"""What a comparison found."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from probinterp.recovery import MatchedCorrelation, SupportScores, block_accuracy, double_coded


@dataclass(frozen=True, eq=False)
class BaselineResult:
    """What one method achieved.

    Attributes
    ----------
    name
        Name of the method.
    log_density
        Log density of each held-out observation, (N,), float64, in nats.
    rv, frobenius
        RV coefficient and relative Frobenius error of the covariance of each study, (M,); NaN where
        there is nothing to compare with.
    covariance_draws
        Monte-Carlo draws behind these covariances; None for closed forms.
    support
        Scores of the supports: of all columns whatever their block ("all"), of the shared ones
        ("shared") and of the specific ones within their own study ("specific"). None without true
        supports, or where the method has none; the last two need blocks.
    correlation
        Correlations of the true factors with the codes of the training data, or None. All codes of
        a method without blocks count as shared.
    seconds
        Time of the fit.
    """

    name: str
    log_density: Tensor
    rv: Tensor
    frobenius: Tensor
    covariance_draws: int | None
    support: dict[str, SupportScores] | None
    correlation: MatchedCorrelation | None
    seconds: float


@dataclass(frozen=True, eq=False)
class Comparison:
    """Methods on the same held-out observations, in the order in which they were given.

    Attributes
    ----------
    results
        One for each method.
    study
        Study of each held-out observation, (N,).
    studies
        Studies that covariances are of, (M,).
    covariances_of
        ``"truth"`` or ``"held-out sample"``: what covariances are compared with.
    """

    results: tuple[BaselineResult, ...]
    study: Tensor
    studies: tuple[int, ...]
    covariances_of: str

    @property
    def best(self) -> str:
        """Name of the method with the largest average log density."""
        return max(self.results, key=lambda result: result.log_density.mean().item()).name

    def result(self, name: str) -> BaselineResult:
        """The result of a method.

        Raises
        ------
        KeyError
            If there is no method of that name.
        """
        for result in self.results:
            if result.name == name:
                return result
        raise KeyError(f"no method {name!r}; there are {[r.name for r in self.results]}.")

    def table(self, against: str | None = None) -> list[dict[str, Any]]:
        """One row a method, the best held-out log density first.

        Parameters
        ----------
        against
            Method that paired differences are to; default the best one.

        Returns
        -------
        list
            Averages over held-out observations and over studies; NaN where something is unknown.
        """
        other = self.result(self.best if against is None else against).log_density
        rows = []
        for result in sorted(self.results, key=lambda r: -r.log_density.mean().item()):
            correlation = result.correlation
            row = {"method": result.name, **_paired(result.log_density, other)}
            row |= {"RV": result.rv.mean().item(), "Frobenius": result.frobenius.mean().item()}
            row |= {"covariance draws": result.covariance_draws}
            for part in ("all", "shared", "specific"):
                scores = (result.support or {}).get(part, SupportScores(*[math.nan] * 3))
                row |= {f"{name} ({part})": v for name, v in scores._asdict().items()}
            row["block accuracy"] = math.nan if correlation is None else block_accuracy(correlation)
            coded = math.nan if correlation is None else int(double_coded(correlation).sum())
            row["double coded"] = coded
            rows.append(row | {"seconds": result.seconds})
        return rows

    def study_table(self, against: str | None = None) -> list[dict[str, Any]]:
        """One row a method and study: held-out log density, paired difference, covariance.

        Parameters
        ----------
        against
            Method that paired differences are to; default the best one over all studies.
        """
        other = self.result(self.best if against is None else against).log_density
        return [
            {
                "method": result.name,
                "study": m,
                "observations": int((self.study == m).sum()),
                **_paired(result.log_density[self.study == m], other[self.study == m]),
                "RV": result.rv[i].item(),
                "Frobenius": result.frobenius[i].item(),
            }
            for result in self.results
            for i, m in enumerate(self.studies)
        ]


def _paired(density: Tensor, other: Tensor) -> dict[str, float]:
    difference = density - other
    return {
        "log density": density.mean().item(),
        "standard error": _standard_error(density),
        "difference": difference.mean().item(),
        "its standard error": _standard_error(difference),
    }


def _standard_error(values: Tensor) -> float:
    return values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
