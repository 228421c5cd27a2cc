"""A method fitted to every study by itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from probinterp.baselines.fitted_model import studies_of
from probinterp.baselines.protocol import Baseline, FittedBaseline, require_known
from probinterp.inference import ArrayData
from probinterp.models import Batch


@dataclass(frozen=True)
class PerStudy:
    """Separate fits of one method to the observations of each study; all factors are specific.

    Parameters
    ----------
    baseline
        Method for observations of a single study.
    name
        How it is called in tables.
    """

    baseline: Baseline
    name: str

    def fit(self, train: ArrayData, seed: int) -> FittedPerStudy:
        """Fit the method to each study."""
        if train.study is None:
            raise ValueError("separate fits need the study of every observation, got None.")
        parts = {m: self.baseline.fit(_alone(train, m), seed) for m in studies_of(train)}
        return FittedPerStudy(parts, train)


class FittedPerStudy:
    """One fitted method for each study.

    Parameters
    ----------
    parts
        Fitted method by study; for each of them its observations are of study 0.
    train
        Data of the fits.
    """

    def __init__(self, parts: dict[int, FittedBaseline], train: ArrayData) -> None:
        self.parts = parts
        self._sizes: dict[int, int] = {}
        for m, part in parts.items():
            scores = part.scores(_alone(train, m).batch(torch.arange(1)))
            self._sizes[m] = 0 if scores is None else scores.shape[1]

    @property
    def block(self) -> Tensor | None:
        """Study of each factor; None where the method has no factors."""
        if not sum(self._sizes.values()):
            return None
        sizes = torch.tensor(list(self._sizes.values()))
        return torch.repeat_interleave(torch.tensor(list(self._sizes)), sizes)

    @property
    def support(self) -> Tensor | None:
        """Supports side by side; None where the loadings are dense."""
        supports = [part.support for part in self.parts.values()]
        known = [support for support in supports if support is not None]
        return torch.cat(known, dim=1) if len(known) == len(supports) else None

    @property
    def covariance_draws(self) -> int | None:
        """Number of draws behind a covariance, or None."""
        return next(iter(self.parts.values())).covariance_draws

    def log_density(self, batch: Batch) -> Tensor:
        """Log density of each observation by the fit of its study."""
        study = self._study(batch)
        found = torch.empty(len(batch.x), dtype=torch.float64)
        for m, part in self.parts.items():
            rows = study == m
            if rows.any():
                found[rows] = part.log_density(_relabelled(batch.rows(rows)))
        return found

    def covariance(self, study: int) -> Tensor:
        """Covariance matrix by the fit of the study."""
        require_known(study, tuple(self.parts))
        return self.parts[study].covariance(0)

    def scores(self, batch: Batch) -> Tensor | None:
        """Factors of each observation, zero for those of other studies; None without factors."""
        block = self.block
        if block is None:
            return None
        study = self._study(batch)
        found = torch.zeros(len(batch.x), len(block), dtype=batch.x.dtype)
        for m, part in self.parts.items():
            rows = (study == m).nonzero().flatten()
            if len(rows):
                scores = part.scores(_relabelled(batch.rows(rows)))
                assert scores is not None
                found[rows.unsqueeze(1), (block == m).nonzero().flatten()] = scores.to(found.dtype)
        return found

    def _study(self, batch: Batch) -> Tensor:
        if batch.study is None:
            raise ValueError("separate fits need the study of every observation, got None.")
        require_known(batch.study, tuple(self.parts))
        return batch.study


def _alone(train: ArrayData, study: int) -> ArrayData:
    assert train.study is not None
    rows = train.subset((train.study == study).nonzero().flatten())
    return ArrayData.of(_relabelled(rows.batch()))


def _relabelled(batch: Batch) -> Batch:
    assert batch.study is not None
    return batch._replace(study=torch.zeros_like(batch.study))
