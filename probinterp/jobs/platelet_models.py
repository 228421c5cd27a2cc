"""Fits of a platelet cohort: the multi-study sparse VAE, and the models it is compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from probinterp.baselines import StudyMeans
from probinterp.genomics import ExpressionData, from_anndata, split, write_factors
from probinterp.inference import (
    ArrayData,
    BlockCheck,
    CodeMending,
    Data,
    Mending,
    Restarts,
    block_check,
    factors,
    fit,
    full_objective,
    late_cosine,
    log_predictive_density,
    mend_blocks,
    mend_codes,
    screen_specific,
)
from probinterp.inference.block_check import REFIT_SHARE as BLOCK_SHARE
from probinterp.inference.code_mending import REFIT_SHARE as CODE_SHARE
from probinterp.inference.data import as_batch
from probinterp.inference.screening import REFIT_SHARE as SCREEN_SHARE
from probinterp.inference.stability import Stability, refitting, stability
from probinterp.jobs.fitting import KEY_OF_STUDIES, SPLIT_COLUMN, Fitted
from probinterp.jobs.platelet_cohort import BATCH, DISEASE, Cohort
from probinterp.likelihoods import NegativeBinomialLikelihood, RoundedLogNormalLikelihood
from probinterp.models import FactorAnalysis, MultiStudySparseVAE, ProbabilisticModel, SparseVAE

OURS = "multi-study sparse VAE"
POOLED, LINEAR, MEANS = "pooled sparse VAE", "factor analysis", "group means"
N_SHARED, N_SPECIFIC, N_LINEAR, N_HIDDEN = 12, 1, 10, 32
SPIKE, SLAB = 2.0, 0.1  # rates per sample
KL_WARMUP = 0.2
SUBSAMPLE = 0.8
STABLE = 0.8  # share of refits in which a factor must come back
CODE_ROUNDS = 2
N_SAMPLES, REFINE_STEPS = 200, 150  # importance samples of a held-out density, and their proposal


class PlateletMending(NamedTuple):
    """What happened to a model after its fit.

    Attributes
    ----------
    blocks, codes
        Columns moved between blocks, then codes unfolded or gathered.
    removed
        Names of the specific factors that did not come back in refits and were taken out.
    check
        Check of the blocks of the final model.
    """

    blocks: Mending
    codes: CodeMending
    removed: tuple[str, ...]
    check: BlockCheck

    @property
    def epochs(self) -> float:
        """Training of the kept changes, in units of the epochs of a fit."""
        rounds = (len(self.blocks.objectives) - 1, len(self.codes.objectives) - 1)
        mended = rounds[0] * BLOCK_SHARE + rounds[1] * CODE_SHARE
        return mended + (SCREEN_SHARE if self.removed else 0)


class PlateletFit(NamedTuple):
    """A fitted and mended multi-study model of a cohort, and how it came out.

    Attributes
    ----------
    fitted
        Model, data and factors of all samples.
    everyone
        All samples, in the order of ``fitted.factors``.
    mending
        What was done to blocks and codes of the model, and which specific factors were taken out.
    stability
        How its factors, before any were taken out, come back in refits to parts of the training
        samples.
    densities
        Log predictive density of every held-out sample by model, this one first.
    """

    fitted: Fitted
    everyone: ExpressionData
    mending: PlateletMending
    stability: Stability
    densities: dict[str, Tensor]

    @property
    def uneven(self) -> list[str]:
        """Shared factors whose variances differ threefold between diseases, after the mending."""
        check, columns = self.mending.check, self.fitted.factors.columns.tolist()
        names = dict(zip(columns, self.fitted.factor_names, strict=True))
        return [names[k] for k in check.columns[check.misplaced].tolist() if k in names]


@dataclass(frozen=True)
class Training:
    """How every model of the job is trained.

    Parameters
    ----------
    max_epochs, seed, device, progress
        Passed to :func:`probinterp.fit`.
    n_shared
        Shared columns of the multi-study model, and columns of the pooled one.
    """

    max_epochs: int
    seed: int
    device: str
    progress: bool
    n_shared: int = N_SHARED

    def options(self, learning_rate: float = 5e-3) -> dict[str, Any]:
        """Options of a fit, apart from its seed."""
        return {
            "max_epochs": self.max_epochs,
            "batch_size": 64,
            "optimizer": partial(torch.optim.Adam, lr=learning_rate),
            "schedule": late_cosine,
            "device": self.device,
        }


def fit_cohort(cohort: Cohort, training: Training, n_seeds: int) -> PlateletFit:
    """Hold samples out by disease, fit, mend the blocks, refit for stability, and compare.

    Parameters
    ----------
    cohort
        Samples; factors are written into its AnnData.
    training
        Length, seed and device of the fits.
    n_seeds
        Refits to parts of the training samples.

    Raises
    ------
    KeyboardInterrupt
        If the main fit was interrupted: half an analysis would mislead.
    """
    adata, seed = cohort.adata, training.seed
    parts = split(adata, 0.2, stratify=DISEASE, seed=seed)
    read = partial(from_anndata, study_key=DISEASE, batch_key=BATCH)
    train = read(parts.train, drop_empty=True)
    held = read(parts.heldout, like=train)
    make_model = partial(multistudy_model, train, training.n_shared)
    model = _new(make_model, seed)
    history = fit(
        model, train, heldout=held, seed=seed, progress=training.progress, **training.options()
    )
    if history.stopped == "interrupted":
        raise KeyboardInterrupt
    assert isinstance(train.data, ArrayData)  # nothing is backed by a file
    options = training.options() | {"seed": seed}
    blocks = mend_blocks(model, train, **options)
    codes = mend_codes(blocks.model, train, rounds=CODE_ROUNDS, **options)
    refit = refitting(make_model, partial(_mended, training=training), **training.options())
    seeds = range(seed + 1, seed + 1 + n_seeds)
    stable = stability(refit, train.data, codes.model, seeds=seeds, subsample=SUBSAMPLE)
    model, gone = screen_specific(codes.model, stable, train, threshold=STABLE, **options)
    names = stable.reference.named(train.study_names)
    by_column = dict(zip(stable.reference.columns.tolist(), names, strict=True))
    removed = tuple(by_column[column] for column in gone)
    mending = PlateletMending(blocks, codes, removed, block_check(model, train))
    restarts = Restarts(model, (full_objective(model, train),), (history,), (model,), (seed,))
    everyone = read(adata, like=train)
    found = factors(model, everyone)
    adata.obs[SPLIT_COLUMN] = pd.Categorical(
        ["heldout" if name in set(held.obs_names) else "train" for name in adata.obs_names]
    )
    write_factors(adata, found, key=KEY_OF_STUDIES, data=everyone, overwrite=True)
    longer = replace(training, max_epochs=round(training.max_epochs * (1 + mending.epochs)))
    densities = {OURS: _density(model, held, seed)} | _baselines(train, held, longer)
    return PlateletFit(
        Fitted(model, restarts, train, held, found, adata), everyone, mending, stable, densities
    )


def multistudy_model(train: ExpressionData, n_shared: int) -> MultiStudySparseVAE:
    """Shared columns and one for each disease, with shifts of batches taken out."""
    return MultiStudySparseVAE(
        train.n_vars,
        n_shared,
        N_SPECIFIC,
        len(train.study_names or ()),
        likelihood=NegativeBinomialLikelihood(train.n_vars, standardize=True),
        n_nuisance_levels=len(train.nuisance_names or ()),
        **_sizes(train),
    )


def _pooled_model(train: ExpressionData, n_shared: int) -> SparseVAE:
    likelihood = NegativeBinomialLikelihood(train.n_vars, standardize=True)
    return SparseVAE(train.n_vars, n_shared, likelihood=likelihood, **_sizes(train))


def _linear_model(train: ExpressionData) -> FactorAnalysis:
    likelihood = RoundedLogNormalLikelihood(train.n_vars)
    return FactorAnalysis(train.n_vars, N_LINEAR, likelihood=likelihood)


def _sizes(train: ExpressionData) -> dict[str, Any]:
    return {
        "n_hidden": N_HIDDEN,
        "spike": SPIKE * len(train),
        "slab": SLAB * len(train),
        "start": "components",
        "kl_warmup": KL_WARMUP,
    }


def _baselines(
    train: ExpressionData, held: ExpressionData, training: Training
) -> dict[str, Tensor]:
    """Held-out densities of models that know of no batches, and of no groups but the last."""
    seed = training.seed
    densities: dict[str, Tensor] = {}
    pooled = partial(_pooled_model, train, training.n_shared)
    linear = partial(_linear_model, train)
    for name, make, rate in ((POOLED, pooled, 5e-3), (LINEAR, linear, 1e-2)):
        model = _new(make, seed)
        fit(model, train, seed=seed, progress=training.progress, **training.options(rate))
        densities[name] = _density(model, held, seed)
    assert isinstance(train.data, ArrayData)
    means = StudyMeans(NegativeBinomialLikelihood).fit(train.data, seed)
    return densities | {MEANS: means.log_density(as_batch(held.data)).float()}


def _density(model: ProbabilisticModel, held: ExpressionData, seed: int) -> Tensor:
    return log_predictive_density(
        model, held.batch(), n_samples=N_SAMPLES, refine_steps=REFINE_STEPS, seed=seed
    )


def _mended(model: ProbabilisticModel, data: Data, *, training: Training) -> ProbabilisticModel:
    options = training.options() | {"seed": training.seed}
    return mend_codes(mend_blocks(model, data, **options).model, data, rounds=1, **options).model


def _new(make: Callable[[], ProbabilisticModel], seed: int) -> ProbabilisticModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()
