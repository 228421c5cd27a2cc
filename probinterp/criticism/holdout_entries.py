"""Holding out a part of every unit: entries, features, or half of the counts.

A fit, or the inference of a unit's local latents, sees the observed part; the check compares the
other part. Both belong to the same units, so the latents of a replicate may be inferred from the
observed part (``local="observed"``) without using any number twice.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from probinterp.criticism.holdout import Holdout, require_share, size_heldout


class MaskedEntries(NamedTuple):
    """Which entries of a data matrix are held out.

    Parameters
    ----------
    design
        ``"entries"``.
    seed
        Seed that it was drawn with.
    share
        Share of each row that was asked for.
    heldout
        Boolean, (N, G); True where an entry is held out.
    """

    design: str
    seed: int
    share: float
    heldout: Tensor

    @property
    def observed(self) -> Tensor:
        """Boolean, (N, G); True where an entry may be seen."""
        return ~self.heldout

    @property
    def n_heldout(self) -> int:
        """Number of held-out entries."""
        return int(self.heldout.sum())


class CountSplit(NamedTuple):
    """Counts divided between an observed and a held-out part of every unit.

    Parameters
    ----------
    design
        ``"counts"``, or ``"counts, fixed totals"``.
    seed
        Seed that it was drawn with.
    share
        Share of the tokens that was asked for.
    observed, heldout
        Counts, (N, G), in the dtype and on the device of the data; their sum is the data.
    """

    design: str
    seed: int
    share: float
    observed: Tensor
    heldout: Tensor


def mask_entries(shape: tuple[int, int], share: float, seed: int) -> MaskedEntries:
    """Hold out a share of each row's entries, chosen at random without replacement.

    Parameters
    ----------
    shape
        Shape of the data, (N, G), with G at least 2.
    share
        Share of each row that is held out, in (0, 1); rounded to whole entries, at least one
        held out and one left.
    seed
        Seed of the random choice.

    Returns
    -------
    MaskedEntries
        With the same number of held-out entries in every row.

    Raises
    ------
    ValueError
        If the share is out of range or there are fewer than two columns.
    """
    require_share(share)
    n_rows, n_features = shape
    if n_rows < 1 or n_features < 2:
        raise ValueError(f"masking needs at least 1 row and 2 columns, got shape {shape}.")
    n_heldout = min(max(round(share * n_features), 1), n_features - 1)
    keys = np.random.default_rng(seed).random(shape, np.float32)
    columns = torch.from_numpy(keys).topk(n_heldout, dim=1).indices
    mask = torch.zeros(shape, dtype=torch.bool).scatter_(1, columns, True)
    return MaskedEntries("entries", seed, share, mask)


def split_features(n_features: int, share: float, seed: int) -> Holdout:
    r"""Hold out :math:`\lceil \mathrm{share} \cdot G \rceil` features of all units.

    Parameters
    ----------
    n_features
        Number of features, G, at least 2.
    share
        Share of the features that is held out, in (0, 1).
    seed
        Seed of the random choice.

    Returns
    -------
    Holdout
        Design ``"features"``; its indices are columns of the data.

    Raises
    ------
    ValueError
        If one of the parts would be empty.
    """
    n_heldout = size_heldout(n_features, share, "features")
    order = torch.from_numpy(np.random.default_rng(seed).permutation(n_features))
    heldout, train = order[:n_heldout].sort().values, order[n_heldout:].sort().values
    return Holdout("features", seed, share, train, heldout)


def split_counts(x: Tensor, share: float, seed: int, *, fixed_totals: bool = False) -> CountSplit:
    r"""Divide the tokens of each unit between two parts, for document completion.

    .. math:: x^{new}_{ij} \mid x_{ij} \sim \mathrm{Binomial}(x_{ij}, \mathrm{share}), \qquad
        x^{obs}_{ij} = x_{ij} - x^{new}_{ij}

    If the counts are Poisson given the latents, the parts are independent Poisson counts with
    the rates shared out; if they are multinomial given the latents and the total, the parts are
    independent multinomials given their totals.

    Parameters
    ----------
    x
        Counts, (N, G), non-negative whole numbers in any dtype.
    share
        Expected share of the tokens that is held out, in (0, 1).
    seed
        Seed of the random division.
    fixed_totals
        Hold out exactly the share of each unit's tokens, rounded, at least one on each side where
        the unit has two or more: a multivariate hypergeometric draw. Right for models that are
        given the totals, as of documents; wrong for Poisson-like ones, whose held-out totals it
        makes a function of the observed totals.

    Returns
    -------
    CountSplit
        The two parts.

    Raises
    ------
    ValueError
        If ``x`` is not a matrix of counts or the share is out of range.
    """
    require_share(share)
    if x.ndim != 2:
        raise ValueError(f"x must have shape (N, G), got {tuple(x.shape)}.")
    if (bad := int(((x < 0) | (x != x.round())).sum())) > 0 or not x.isfinite().all():
        raise ValueError(f"x must hold counts; {bad} entries are negative, NaN or not whole.")
    counts, random = x.cpu().numpy().astype(np.int64), np.random.default_rng(seed)
    if fixed_totals:
        chosen = np.empty_like(counts)
        for row, tokens in enumerate(counts):
            size = _tokens_heldout(int(tokens.sum()), share)
            chosen[row] = random.multivariate_hypergeometric(tokens, size, method="marginals")
    else:
        chosen = random.binomial(counts, share)
    heldout = torch.from_numpy(chosen).to(x)
    design = "counts, fixed totals" if fixed_totals else "counts"
    return CountSplit(design, seed, share, x - heldout, heldout)


def _tokens_heldout(total: int, share: float) -> int:
    if total < 2:
        return 0
    return min(max(round(share * total), 1), total - 1)
