"""What a fitted model found: posteriors and factors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from probinterp.inference.data import ArrayData, Data, to_device
from probinterp.inference.sites import sites_of
from probinterp.models.base import Batch, ProbabilisticModel
from probinterp.models.blocks import SHARED

ACTIVE_LOADING = 1e-2
EFFECT_ROWS = 2000  # observations that decoded effects are averaged over, about
STUDY_ROWS = 50  # of them at least for each study, where it has as many
SHARED_NAME = "shared"


class Factors(NamedTuple):
    r"""Factors of a data set, columns ordered by block and number of features they reach.

    Attributes
    ----------
    scores
        Posterior means of the factors, (N, K').
    scales
        Posterior standard deviations of the factors, (N, K').
    loadings
        Loadings or mask W, (G, K'), signed so that the largest effect of each factor is positive
        (the largest loading, where there are no effects); None where the model
        has no site ``"W"`` or parameter ``loadings``.
    inclusion
        Probability that a loading comes from the slab, (G, K'), or None.
    effects
        Decoded effect of each factor on each feature in units of its noise, (G, K'), see
        :func:`decoded_effects`; None where the model cannot decode factors.
    columns
        Index of each factor in the model, (K',); empty columns are dropped.
    block
        Study that a factor is specific to, -1 for a shared one, (K',) int64; None for models
        without blocks.
    """

    scores: Tensor
    scales: Tensor
    loadings: Tensor | None
    inclusion: Tensor | None
    effects: Tensor | None
    columns: Tensor
    block: Tensor | None = None

    @property
    def names(self) -> list[str]:
        """``factor_1`` and so on; with blocks ``shared_1``, ``study0_1`` and so on."""
        return self.named()

    def named(self, study_names: Sequence[str] | None = None) -> list[str]:
        """Names of the factors, with blocks by study: ``shared_1``, ``<study>_1`` and so on.

        Parameters
        ----------
        study_names
            Name of each study, by default ``study0`` and so on; of no use without blocks.

        Raises
        ------
        ValueError
            If a study has no name, or is called ``shared``.
        """
        blocks = self.block_names(study_names)
        if blocks is None:
            return [f"factor_{i + 1}" for i in range(len(self.columns))]
        seen: Counter[str] = Counter()
        names = []
        for block in blocks:
            seen[block] += 1
            names.append(f"{block}_{seen[block]}")
        return names

    def block_names(self, study_names: Sequence[str] | None = None) -> list[str] | None:
        """``shared`` or the name of the study of each factor; None without blocks."""
        if self.block is None:
            return None
        blocks = self.block.tolist()
        n_studies = max(blocks, default=SHARED) + 1
        names = [f"study{m}" for m in range(n_studies)] if study_names is None else study_names
        if len(names) < n_studies:
            raise ValueError(f"expected names of {n_studies} studies or more, got {list(names)}.")
        if SHARED_NAME in names:
            raise ValueError(f"no study can be called {SHARED_NAME!r}, got {list(names)}.")
        return [SHARED_NAME if m == SHARED else str(names[m]) for m in blocks]

    @property
    def support(self) -> Tensor | None:
        """Which features a factor reaches, (G, K') boolean: active and more likely slab."""
        if self.loadings is None:
            return None
        active = self.loadings.abs() > ACTIVE_LOADING
        return active if self.inclusion is None else active & (self.inclusion > 0.5)


@torch.no_grad()
def posterior(model: ProbabilisticModel, batch: Batch) -> dict[str, TorchDistribution]:
    """Variational posterior of every latent site, read from the guide's trace.

    Parameters
    ----------
    model
        Fitted model.
    batch
        Observations to condition on, on any device; sparse rows are accepted.

    Returns
    -------
    dict
        Distribution per site name, for example ``posterior(model, batch)["z"].mean`` (N, K).
    """
    batch = to_device(batch, next(model.parameters()).device)
    with torch.random.fork_rng():
        return {name: site.distribution for name, site in sites_of(model.guide, batch).items()}


@torch.no_grad()
def factors(model: ProbabilisticModel, data: Data | Batch, *, batch_size: int = 4096) -> Factors:
    """Scores, loadings and inclusion probabilities, ready to be read.

    Columns without an active feature are dropped, the others ordered by block (the shared one,
    then study by study) and by how many features they reach, and signs chosen so that the
    feature that a factor moves most rises with its score; flipping the sign of a factor and
    its column changes no prediction.

    Parameters
    ----------
    model
        Fitted model with a local site ``"z"``.
    data
        Observations whose factors are wanted.
    batch_size
        Observations at a time.

    Returns
    -------
    Factors
        On the CPU.
    """
    source = ArrayData.of(data) if isinstance(data, Batch) else data
    parts, studies = [], []
    for index in torch.arange(len(source)).split(batch_size):
        batch = source.batch(index)
        z = posterior(model, batch)["z"]
        parts.append((z.mean.cpu(), z.variance.sqrt().cpu()))
        studies += [] if batch.study is None else [batch.study.cpu()]
    scores, scales = (torch.cat(values) for values in zip(*parts, strict=True))
    rows = _spread_rows(len(source), torch.cat(studies) if studies else None)
    loadings, effects = _loadings(model), decoded_effects(model, scores[rows], source.batch(rows))
    columns, block = torch.arange(scores.shape[1]), getattr(model, "block", None)
    block = block.cpu() if isinstance(block, Tensor) else None
    found = Factors(scores, scales, loadings, _inclusion(model), effects, columns, block)
    return found if loadings is None else _ordered(found)


@torch.no_grad()
def decoded_effects(model: ProbabilisticModel, scores: Tensor, batch: Batch) -> Tensor | None:
    r"""Effect of each factor on each feature in units of its noise, (G, K), on the CPU.

    .. math:: \mathrm{sign}(\mathrm{cov}_i(d_{ijk}, z_{ik}))\ \mathrm{rms}_i(d_{ijk}), \quad
              d_{ijk} = \frac{E[x_{ij} \mid z_i] - E[x_{ij} \mid z_i, z_{ik} = 0]}
                             {\mathrm{sd}(x_{ij} \mid z_i)}

    Unlike a mask entry it says how much a feature moves: heads and trunk of the decoder scale
    the mask freely, and a change of a rare count is worth little. A factor of one study is
    averaged over the observations of that study (the rows that its gate opens); its effects are
    zero where there are none. None where the model has no method ``decode(z)`` or no
    ``likelihood``.
    """
    decode, likelihood = (getattr(model, name, None) for name in ("decode", "likelihood"))
    if decode is None or likelihood is None:
        return None
    batch = to_device(batch, next(model.parameters()).device)
    scores = scores.to(batch.x.device)
    whole, gate = likelihood(decode(scores), batch), _gate(model, batch)
    mean, scale = whole.mean, whole.variance.sqrt()
    effects = torch.zeros(mean.shape[1], scores.shape[1], device=mean.device, dtype=mean.dtype)
    for factor in range(scores.shape[1]):
        rows = slice(None) if gate is None or gate[:, factor].all() else gate[:, factor]
        if not len(scores[rows]):
            continue
        without = scores[rows].clone()
        without[:, factor] = 0.0
        moved = (mean[rows] - likelihood(decode(without), batch.rows(rows)).mean) / scale[rows]
        score = scores[rows, factor] - scores[rows, factor].mean()
        effects[:, factor] = torch.sign(score @ moved) * moved.square().mean(0).sqrt()
    return effects.cpu()


def _gate(model: ProbabilisticModel, batch: Batch) -> Tensor | None:
    """Which factors each observation has, (N, K) boolean; None where all have all."""
    gates = getattr(model, "gates", None)
    if not isinstance(gates, Tensor):
        return None
    first = torch.zeros(len(batch.x), dtype=torch.long, device=gates.device)
    return gates[first if batch.study is None else batch.study]


def _spread_rows(n_obs: int, study: Tensor | None) -> Tensor:
    """Rows spread evenly over the data, about 2000; of every study in proportion, at least 50."""
    if n_obs <= EFFECT_ROWS:
        return torch.arange(n_obs)
    study = torch.zeros(n_obs, dtype=torch.long) if study is None else study
    rows = []
    for m in study.unique():
        of_study = (study == m).nonzero().flatten()
        n_rows = max(EFFECT_ROWS * len(of_study) // n_obs, min(STUDY_ROWS, len(of_study)))
        rows.append(of_study[torch.arange(n_rows) * len(of_study) // n_rows])
    return torch.cat(rows).sort().values


def _loadings(model: ProbabilisticModel) -> Tensor | None:
    loadings = getattr(model, "loadings", None)
    return loadings.detach().cpu() if isinstance(loadings, Tensor) else None


def _inclusion(model: ProbabilisticModel) -> Tensor | None:
    inclusion = getattr(model, "inclusion_probability", None)
    return inclusion.detach().cpu() if isinstance(inclusion, Tensor) else None


def _ordered(found: Factors) -> Factors:
    support, loadings = found.support, found.loadings
    assert support is not None
    assert loadings is not None
    size = support.sum(0)
    order = torch.argsort(size, descending=True, stable=True)
    if found.block is not None:
        order = order[torch.argsort(found.block[order], stable=True)]
    kept = order[size[order] > 0]
    shown = loadings if found.effects is None else found.effects
    largest = shown.gather(0, shown.abs().argmax(0, keepdim=True)).squeeze(0)
    sign = torch.where(largest < 0, -1.0, 1.0)[kept]
    return Factors(
        found.scores[:, kept] * sign,
        found.scales[:, kept],
        loadings[:, kept] * sign,
        None if found.inclusion is None else found.inclusion[:, kept],
        None if found.effects is None else found.effects[:, kept] * sign,
        kept,
        None if found.block is None else found.block[kept],
    )
