"""Covariance matrices of studies: of a sample, and of what a model predicts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from probinterp.inference import ArrayData
from probinterp.models import Batch

CHUNK = 2000  # rows drawn at a time


def sample_covariance(batch: Batch) -> Tensor:
    r"""Covariance matrix of the features, (G, G), in double precision; of counts at size factor 1.

    .. math:: \mathrm{cov}(x_j / s,\ x_k / s)
        - \delta_{jk}\, \overline{x_j / s}\, (\overline{1 / s} - 1)

    The last term is the Poisson variance that the depth of the sample adds to, or takes from, that
    of counts at size factor 1; without size factors it is absent.
    """
    x = batch.x.double()
    if batch.size_factor is None:
        return x.mT.cov()
    size_factor = batch.size_factor.double()
    rate = x / size_factor.unsqueeze(1)
    surplus = rate.mean(0) * ((1 / size_factor).mean() - 1)
    return rate.mT.cov() - surplus.diag()


def predicted_covariance(
    replicate: Callable[[Batch, int], Tensor],
    train: ArrayData,
    study: int,
    *,
    n_draws: int,
    seed: int,
) -> Tensor:
    """Covariance of new observations of a study by Monte Carlo, (G, G), in double precision.

    Parameters
    ----------
    replicate
        Draws observations for the covariates of a batch, from a seed.
    train
        Data of the fit: covariates other than the size factor, which is 1, are those of its rows
        of the study, drawn with replacement.
    study
        Index of the study.
    n_draws
        Number of new observations.
    seed
        Seed of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = rows_of_study(train, study)
    index = rows[torch.randint(len(rows), (n_draws,), generator=generator)]
    total = center = None
    products = torch.zeros((), dtype=torch.float64)
    for chosen in index.split(CHUNK):
        batch = train.batch(chosen)
        ones = None if batch.size_factor is None else torch.ones_like(batch.size_factor)
        batch = batch._replace(size_factor=ones, mask=None)
        x = replicate(batch, int(torch.randint(2**62, (), generator=generator))).double()
        center = x.mean(0) if center is None else center  # products of small numbers
        deviation = x - center
        total = deviation.sum(0) if total is None else total + deviation.sum(0)
        products = products + deviation.mT @ deviation
    assert total is not None
    return (products - torch.outer(total, total) / n_draws) / (n_draws - 1)


def rows_of_study(train: ArrayData, study: int) -> Tensor:
    """Index of the observations of a study; without study labels all."""
    if train.study is None:
        return torch.arange(len(train))
    return (train.study == study).nonzero().flatten()
