"""What a comparison asks of a method."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from probinterp.inference import ArrayData
from probinterp.models import Batch


class FittedBaseline(Protocol):
    """A method after its fit to data of several studies."""

    @property
    def support(self) -> Tensor | None:
        """Which features a factor reaches, (G, K) boolean; None where loadings are dense."""

    @property
    def block(self) -> Tensor | None:
        """Block of each factor, (K,): -1 for shared, m for study m; None without blocks."""

    @property
    def covariance_draws(self) -> int | None:
        """Number of Monte-Carlo draws behind :meth:`covariance`; None for a closed form."""

    def log_density(self, batch: Batch) -> Tensor:
        """Log density of each observation, factors integrated out, (N,), in nats.

        Raises ``ValueError`` for observations of a study that was not among the fitted data.
        """

    def covariance(self, study: int) -> Tensor:
        """Covariance matrix of the features in a study, (G, G); of counts at size factor 1.

        Raises ``ValueError`` for a study that was not among the fitted data.
        """

    def scores(self, batch: Batch) -> Tensor | None:
        """Factors of each observation, (N, K), in the order of the blocks; None without factors."""


@runtime_checkable
class Baseline(Protocol):
    """A method that can be fitted to data of several studies."""

    @property
    def name(self) -> str:
        """How it is called in tables."""

    def fit(self, train: ArrayData, seed: int) -> FittedBaseline:
        """Fit to the data; same seed, same result."""


def require_known(wanted: Tensor | int, known: tuple[int, ...]) -> None:
    """Raise ``ValueError`` unless all ``wanted`` studies are among the ``known`` ones."""
    asked = [wanted] if isinstance(wanted, int) else wanted.unique().tolist()
    if unknown := sorted(set(asked) - set(known)):
        raise ValueError(
            f"studies {unknown} were not among the fitted data, which have {list(known)}: nothing "
            "is known of their own factors and levels."
        )
