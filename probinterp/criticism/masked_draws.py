"""Draws of held-out entries only, made of draws of whole data sets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from probinterp.criticism.draws import PredictiveDraw, self_describing
from probinterp.criticism.marginals import cumulative, marginals


class MaskedDraws:
    """Iterable of draws that replicate and score the M held-out entries of a data matrix.

    Made by :func:`masked_draws`; the attributes ``local``, ``scoring``, ``point_estimate``,
    ``n_obs``, ``n_effective``, ``reference`` and ``reference_draws`` are those of the wrapped
    draws.
    """

    def __init__(self, draws: Iterable[PredictiveDraw], heldout: Tensor) -> None:
        self._draws, self._heldout = draws, heldout
        self.local = getattr(draws, "local", None)
        self.scoring = getattr(draws, "scoring", None)
        self.point_estimate = getattr(draws, "point_estimate", False)
        self.n_obs = getattr(draws, "n_obs", None)
        self.n_effective = getattr(draws, "n_effective", None)
        reference = getattr(draws, "reference", None)
        self.reference = None if reference is None else _MaskedDraw(reference, heldout, True)
        several = getattr(draws, "reference_draws", None)
        self.reference_draws = (
            None
            if several is None
            else [_MaskedDraw(draw, heldout, k == 0) for k, draw in enumerate(several)]
        )

    def __iter__(self) -> Iterator[PredictiveDraw]:
        for index, draw in enumerate(self._draws):
            yield _MaskedDraw(draw, self._heldout, index == 0)


def masked_draws(draws: Iterable[PredictiveDraw], heldout: Tensor) -> MaskedDraws:
    """Restrict draws of whole data sets to the entries that were held out.

    The compared data are ``x[heldout].unsqueeze(1)``, shape (M, 1): each held-out entry counts as
    a unit with one feature. Row and column of the entries are ``heldout.nonzero()``.

    Parameters
    ----------
    draws
        Draws for data of shape (N, G) whose local latents come from the observed entries:
        ``draws.local`` is ``"observed"``, or None for models without local latents. Their
        likelihood must have marginals: be ``Independent`` over entries, multivariate normal, or
        have a method ``marginals()``.
    heldout
        Boolean mask, (N, G), True where held out, on the device of the data; see
        :func:`probinterp.criticism.mask_entries`.

    Returns
    -------
    MaskedDraws
        For :func:`probinterp.criticism.pop_pc`.

    Raises
    ------
    TypeError
        If the mask is not boolean; when used, if the likelihood has no marginals.
    ValueError
        If the mask holds nothing out, or the local latents are inferred from the held-out entries
        or drawn from the prior; when used, if the likelihood changes with the held-out entries.

    References
    ----------
    Holdout predictive checks for Bayesian model criticism (Moran, Blei and Ranganath, 2024).

    Examples
    --------
    >>> import torch
    >>> from torch.distributions import Independent, Normal
    >>> from probinterp.criticism import FunctionDraw, discrepancies, mask_entries, pop_pc
    >>> law = Independent(Normal(torch.zeros(50, 4), 1.0), 1)
    >>> heldout = mask_entries((50, 4), 0.25, seed=0).heldout
    >>> draws = masked_draws([FunctionDraw(law.sample, lambda x: law)] * 99, heldout)
    >>> x_new = 3 * law.sample()[heldout].unsqueeze(1)
    >>> pop_pc(draws, x_new, discrepancies.chi_square).p_value.item()
    0.0
    """
    if not isinstance(heldout, Tensor) or heldout.dtype != torch.bool:
        kind = heldout.dtype if isinstance(heldout, Tensor) else type(heldout).__name__
        raise TypeError(f"heldout must be a boolean mask of shape (N, G), got {kind}.")
    if heldout.ndim != 2 or not heldout.any():
        raise ValueError(
            "heldout must have shape (N, G) and hold something out, "
            f"got shape {tuple(heldout.shape)} with {int(heldout.sum())} entries."
        )
    draws = self_describing(draws)
    local = getattr(draws, "local", None)
    if local not in (None, "observed", "covariates"):
        raise ValueError(
            f"masked_draws needs draws whose local latents come from the observed entries, "
            f"local='observed'; got local={local!r}."
        )
    return MaskedDraws(draws, heldout)


class _MaskedDraw:
    """One draw, seen through the mask."""

    def __init__(self, draw: PredictiveDraw, heldout: Tensor, verify: bool) -> None:
        self._draw, self._heldout, self._verify = draw, heldout, verify

    def replicate(self) -> Tensor:
        """Held-out entries of a replicate, shape (M, 1)."""
        whole = self._draw.replicate()
        if whole.shape != self._heldout.shape:
            raise ValueError(
                "replicate() must return data of the shape of the mask, "
                f"{tuple(self._heldout.shape)}, got {tuple(whole.shape)}."
            )
        return whole[self._heldout].unsqueeze(1)

    def likelihood(self, x: Tensor) -> Distribution:
        """Distribution of the held-out entries, batch shape (M,) and event shape (1,)."""
        whole = _filled(x, self._heldout)
        law = self._draw.likelihood(whole)
        if law.batch_shape + law.event_shape != whole.shape:
            raise ValueError(
                f"the likelihood must be of data of the shape of the mask, {tuple(whole.shape)}, "
                f"got {tuple(law.batch_shape + law.event_shape)}."
            )
        if self._verify:
            other = self._draw.likelihood(_filled(x + 1, self._heldout))
            _require_equal(law.log_prob(whole), other.log_prob(whole))
            self._verify = False
        return _Entries(marginals(law), self._heldout)


class _Entries(Distribution):
    """Entries of independent scalar distributions (N, G) where a mask is True."""

    arg_constraints = {}

    def __init__(self, base: Distribution, heldout: Tensor) -> None:
        self._base, self._heldout = base, heldout
        super().__init__(torch.Size([int(heldout.sum())]), torch.Size([1]), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        return self._base.log_prob(_filled(value, self._heldout))[self._heldout]

    def marginals(self) -> Distribution:
        """The same entries, batch shape (M, 1)."""
        return _EntryMarginals(self._base, self._heldout)

    @cached_property
    def mean(self) -> Tensor:
        return self._base.mean[self._heldout].unsqueeze(1)

    @cached_property
    def variance(self) -> Tensor:
        return self._base.variance[self._heldout].unsqueeze(1)


class _EntryMarginals(Distribution):
    """Held-out entries one by one, for integral transforms."""

    arg_constraints: dict[str, Any] = {}

    def __init__(self, base: Distribution, heldout: Tensor) -> None:
        self._base, self._heldout = base, heldout
        super().__init__(torch.Size([int(heldout.sum()), 1]), validate_args=False)

    @property
    def support(self) -> Any:
        return self._base.support

    def log_prob(self, value: Tensor) -> Tensor:
        return self._base.log_prob(_filled(value, self._heldout))[self._heldout].unsqueeze(1)

    def cdf(self, value: Tensor) -> Tensor:
        whole = cumulative(self._base, _filled(value, self._heldout))
        return whole[self._heldout].unsqueeze(1)


def _filled(x: Tensor, heldout: Tensor) -> Tensor:
    """Whole matrix with ``x`` (M, 1) in the held-out entries.

    The other entries, which are not looked at, get the smallest value of ``x``: it lies in the
    support of the likelihood, which a fixed number need not.
    """
    whole = x.amin().expand(heldout.shape).clone()
    whole[heldout] = x.squeeze(1)
    return whole


def _require_equal(density: Tensor, other: Tensor) -> None:
    if not torch.equal(density, other):
        raise ValueError(
            "the likelihood of the held-out entries changes with their values: local latents must "
            "be inferred from the observed entries alone (local='observed')."
        )
