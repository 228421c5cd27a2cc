"""The law of simulated studies: factors within gates, links, levels and noise."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from probinterp.simulate.counts import negative_binomial
from probinterp.simulate.links import N_LINKS, link_covariance, linked
from probinterp.simulate.log_mean_moments import log_mean_moments
from probinterp.simulate.study_layout import MOMENTS, stream

ROWS = 10_000  # codes that are held at a time in a Monte Carlo average


class GaussianNoise(NamedTuple):
    """Normal noise with a standard deviation of each feature in each study, (M, G)."""

    scale: Tensor


class CountNoise(NamedTuple):
    """Negative binomial counts: r of each feature, (G,), and log sd of the library sizes."""

    inverse_dispersion: Tensor
    library_scale: float


class StudyProcess(NamedTuple):
    r"""How observations of several studies come about.

    .. math::
        z_{ik} \sim N(0, 1)\ \text{where}\ g_k^{(m_i)} = 1\ \text{and}\ 0\ \text{elsewhere}, \quad
        \eta_{ij} = \ell_{m_i j} + \sum_k w_{jk} f_{jk}(z_{ik})

    Observations are normal around :math:`\eta`, or negative binomial around
    :math:`s_i e^{\eta_{ij}}`. Every link f is zero at zero.

    Attributes
    ----------
    block
        Study that a factor belongs to, -1 for shared, (K,).
    gate
        Which factors a study has, (M, K) boolean.
    loadings
        Amplitudes w, (G, K); zero outside the support.
    link
        Which link f a feature has for a factor, (G, K): 0 for z, 1 for sin 1.5 z, 2 for
        1.5 max(z, 0).
    level
        Levels of the features in the studies, (M, G).
    noise
        Noise of the observations.
    """

    block: Tensor
    gate: Tensor
    loadings: Tensor
    link: Tensor
    level: Tensor
    noise: GaussianNoise | CountNoise

    @property
    def support(self) -> Tensor:
        """Which features each factor reaches, (G, K) boolean."""
        return self.loadings != 0

    def codes(self, study: Tensor, source: torch.Generator) -> Tensor:
        """Factors of observations of the given studies, (N, K)."""
        z = torch.randn(len(study), len(self.block), generator=source)
        return z * self.gate[study]

    def predictor(self, z: Tensor, study: Tensor) -> Tensor:
        """Means of normal observations, log means of counts at size factor 1, (N, G)."""
        effects = torch.einsum("lnk,lgk->ng", linked(z), self._by_link())
        return self.level[study] + effects

    def observe(
        self, predictor: Tensor, study: Tensor, source: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        """Observations, (N, G), and the size factors of counts, (N,)."""
        if isinstance(self.noise, GaussianNoise):
            noise = torch.randn(predictor.shape, generator=source)
            return predictor + self.noise.scale[study] * noise, None
        log_size = self.noise.library_scale * torch.randn(len(predictor), generator=source)
        mean = (predictor + log_size.unsqueeze(1)).exp()
        x = negative_binomial(mean, self.noise.inverse_dispersion, source)
        return x, log_size.exp()

    def signal_covariance(self, study: int) -> Tensor:
        r"""Covariance of :math:`\eta` in a study, exact, (G, G), double precision."""
        loadings = (self._by_link() * self.gate[study]).double()
        turned = torch.einsum("lgk,lm->mgk", loadings, link_covariance())
        return torch.einsum("mgk,mhk->gh", turned, loadings)

    def moments(self, study: int, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """Mean (G,) and covariance (G, G) of a study by Monte Carlo, double precision.

        Codes are drawn and the noise is integrated out; counts are those at size factor 1.
        """
        source = stream(seed, MOMENTS)
        n_features = len(self.loadings)
        total, own = torch.zeros(2, n_features, dtype=torch.float64)
        square = torch.zeros(n_features, n_features, dtype=torch.float64)
        for start in range(0, n, ROWS):
            index = torch.full((min(ROWS, n - start),), study)
            mean, variance = self._given(self.predictor(self.codes(index, source), index), study)
            total += mean.sum(0)
            own += variance.sum(0)
            square += mean.mT @ mean
        total, own, square = total / n, own / n, square / n
        return total, square - total.outer(total) + own.diag()

    def covariance(self, study: int, n: int | None = None, seed: int = 0) -> Tensor:
        """Covariance of the observations of a study, see :meth:`MultiStudyTruth.covariance`."""
        if n is not None:
            return self.moments(study, n, seed)[1]
        if isinstance(self.noise, GaussianNoise):
            return self.signal_covariance(study) + self.noise.scale[study].double().square().diag()
        mean, square = log_mean_moments(self.level[study], self._by_link() * self.gate[study])
        own = mean + square.diag() / self.noise.inverse_dispersion
        return square - mean.outer(mean) + own.diag()

    def _given(self, predictor: Tensor, study: int) -> tuple[Tensor, Tensor]:
        """Mean and variance of the observations given the codes."""
        predictor = predictor.double()
        if isinstance(self.noise, GaussianNoise):
            return predictor, self.noise.scale[study].double().square().expand_as(predictor)
        mean = predictor.exp()
        return mean, mean + mean.square() / self.noise.inverse_dispersion

    def _by_link(self) -> Tensor:
        chosen = self.link == torch.arange(N_LINKS).view(-1, 1, 1)
        return self.loadings * chosen  # (3, G, K)
