"""Draws of a model that lives elsewhere: an array of replicates, or a function that makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Distribution

from probinterp.criticism.draws import FunctionDraw, Local

FLOATING = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}

Scoring = Callable[[Tensor, int], Distribution]


class ArrayLike(Protocol):
    """What is asked of an array: numpy, torch, memory-mapped, HDF5, Zarr and Dask arrays fit."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        ...

    @property
    def dtype(self) -> Any:
        """Type of the entries."""
        ...

    def __getitem__(self, index: Any, /) -> Any:
        """Part of the array; only slices of the first axis are asked for."""
        ...


class ReplicatedDraws:
    """Draws whose replicates come from outside; iterate as often as you like.

    Made by :func:`from_arrays` and :func:`from_callable`.

    Parameters
    ----------
    read
        Returns the replicates of the draws ``start`` to ``stop``, shape (C, n, G).
    keys
        What ``likelihood`` is told about each draw, in their order.
    likelihood
        Law of data under one draw, or None.
    reference
        Law of data at the posterior mean, or None.
    local, n_obs, n_effective, point_estimate
        See :func:`from_arrays`.

    Attributes
    ----------
    reference
        Draw at the posterior mean for plug-in discrepancies. Without any likelihood it stands in
        for one, so that statistics can be checked and no replicate is set aside; None where
        draws can score but no posterior mean is known.
    """

    def __init__(
        self,
        read: Callable[[int, int], Tensor],
        keys: range | list[int],
        likelihood: Scoring | None,
        reference: Callable[[Tensor], Distribution] | None,
        *,
        local: Local | None,
        n_obs: int | None,
        n_effective: float | None,
        point_estimate: bool,
    ) -> None:
        if n_effective is not None and not 0 < n_effective:
            raise ValueError(f"n_effective must be positive, got {n_effective!r}.")
        self._read, self._keys, self._likelihood = read, keys, likelihood
        self.local, self.n_obs, self.n_effective = local, n_obs, n_effective
        self.point_estimate = point_estimate
        if reference is None and likelihood is None:
            reference = _cannot_score
        self.reference = None if reference is None else FunctionDraw(_only_scores, reference)

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[FunctionDraw]:
        for index in range(len(self)):
            yield FunctionDraw(partial(self._replicate, index), self._scoring(index), self.local)

    def replicate_chunk(self, start: int, stop: int) -> Tensor:
        """Replicates of the draws ``start`` to ``stop`` (excluded), shape (C, n, G).

        Raises
        ------
        IndexError
            Unless 0 <= start < stop <= number of draws.
        ValueError
            If a replicate has NaN.
        """
        if not 0 <= start < stop <= len(self):
            raise IndexError(
                f"a chunk lies within 0 <= start < stop <= {len(self)}, got {start} to {stop}."
            )
        chunk = self._read(start, stop)
        bad = chunk.flatten(1).sum(1).isnan()
        if bad.any():
            raise ValueError(f"the replicate of draw {start + int(bad.nonzero()[0])} has NaN.")
        return chunk

    def _replicate(self, index: int) -> Tensor:
        return self.replicate_chunk(index, index + 1)[0]

    def _scoring(self, index: int) -> Callable[[Tensor], Distribution]:
        likelihood, key = self._likelihood, self._keys[index]
        return _cannot_score if likelihood is None else lambda x: likelihood(x, key)


def from_arrays(
    replicated: ArrayLike,
    *,
    likelihood: Scoring | None = None,
    reference: Callable[[Tensor], Distribution] | None = None,
    local: Local | None = None,
    n_obs: int | None = None,
    n_effective: float | None = None,
    point_estimate: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> ReplicatedDraws:
    """Draws from an array of replicates, whatever made it.

    Parameters
    ----------
    replicated
        Replicates of the held-out data, shape (S, n, G), one per posterior draw. Sliced along
        the first axis only, so that a file (``numpy.memmap``, HDF5, Zarr) is never read whole.
    likelihood
        Function of data (n, G) and the index of a draw, from 0, that returns the distribution of
        the data under that draw, batch shape (n,) and event shape (G,). Local latents must be
        inferred from the data it is given or integrated out, never be those of the replicate.
        Without it and ``reference`` only statistics, which ignore the draw, can be checked.
    reference
        The same at the posterior mean of the parameters, a function of data alone: what a
        plug-in check evaluates. Default: the first draw is set aside for that, if it can score.
    local
        How the local latents of the replicates were drawn: ``"prior"`` given the parameters,
        ``"posterior"`` given the held-out units themselves, ``"observed"`` given a part of those
        units that is not compared, ``"covariates"`` given these alone. None where there are none.
    n_obs
        Number of units of the fit.
    n_effective
        Effective number of draws where they are autocorrelated (a Markov chain).
    point_estimate
        True if the global parameters were point-estimated.
    dtype
        Floating type of the replicates, the one of the held-out data: floating-point arrays keep
        theirs by default, counts become float64. With another type than the data's, values that
        are equal need not tie.
    device
        Where the replicates shall lie; default where they are, the CPU for numpy.

    Returns
    -------
    ReplicatedDraws
        For :func:`probinterp.pop_pc`, with ``replicate_chunk`` for vectorised statistics.

    Raises
    ------
    TypeError
        If ``replicated`` is not a real-valued array, or ``dtype`` not floating.
    ValueError
        If its shape is not (S, n, G) or it is empty; at use, if a replicate has NaN.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from probinterp.criticism import discrepancies, pop_pc
    >>> random = np.random.default_rng(0)
    >>> draws = from_arrays(random.poisson(2.0, size=(199, 50, 3)))
    >>> x_new = torch.as_tensor(random.poisson(4.0, size=(50, 3))).double()
    >>> pop_pc(draws, x_new, discrepancies.mean).p_two_sided.item()
    0.01
    """
    shape = getattr(replicated, "shape", None)
    if shape is None:
        raise TypeError(f"replicated must be an array, got {type(replicated).__name__}.")
    if len(shape) != 3 or 0 in shape:
        raise ValueError(
            "replicated must have shape (draws, units, features), not empty, got "
            f"{tuple(shape)}; for a single feature add an axis at the end, for a single draw one "
            "at the beginning."
        )
    wanted = _floating(replicated.dtype if dtype is None else dtype, given=dtype is not None)

    def read(start: int, stop: int) -> Tensor:
        return _as_tensor(replicated[start:stop], wanted, device)

    return ReplicatedDraws(
        read,
        range(shape[0]),
        likelihood,
        reference,
        local=local,
        n_obs=n_obs,
        n_effective=n_effective,
        point_estimate=point_estimate,
    )


def from_callable(
    replicate: Callable[[int], NDArray[Any] | Tensor],
    n_draws: int,
    *,
    likelihood: Scoring | None = None,
    reference: Callable[[Tensor], Distribution] | None = None,
    local: Local | None = None,
    n_obs: int | None = None,
    point_estimate: bool = False,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> ReplicatedDraws:
    """Draws from a function that makes one replicate from a seed.

    Parameters
    ----------
    replicate
        Function of a seed, an integer in [0, 2^32), that takes a posterior draw, simulates data
        like the held-out ones and returns them, shape (n, G). The same seed must give the same
        data.
    n_draws
        Number of draws, S.
    likelihood
        Function of data (n, G) and the seed of a draw that returns the distribution of the data
        under the parameters that ``replicate(seed)`` uses; otherwise as for :func:`from_arrays`.
    reference, local, n_obs, point_estimate, dtype, device
        As for :func:`from_arrays`.
    seed
        Seed from which those of the draws are derived.

    Returns
    -------
    ReplicatedDraws
        For :func:`probinterp.pop_pc`; replicates are made when they are asked for.

    Raises
    ------
    TypeError
        If ``replicate`` is not callable; at use, if it does not return real numbers.
    ValueError
        If ``n_draws`` is not a positive integer; at use, if a replicate has NaN or is not (n, G).

    Examples
    --------
    >>> import numpy as np, torch
    >>> from probinterp.criticism import discrepancies, pop_pc
    >>> draws = from_callable(lambda seed: np.random.default_rng(seed).normal(size=(50, 3)), 199)
    >>> pop_pc(draws, torch.full((50, 3), 0.5).double(), discrepancies.mean).p_value.item()
    0.0
    """
    if not callable(replicate):
        raise TypeError(
            f"replicate must be a function of a seed, got {type(replicate).__name__}; "
            "for an array use from_arrays."
        )
    if isinstance(n_draws, bool) or not isinstance(n_draws, int) or n_draws < 1:
        raise ValueError(f"n_draws must be a positive integer, got {n_draws!r}.")
    seeds = np.random.SeedSequence(seed).generate_state(n_draws).tolist()
    wanted = None if dtype is None else _floating(dtype, given=True)

    def read(start: int, stop: int) -> Tensor:
        return torch.stack([_one(replicate(s), wanted, device) for s in seeds[start:stop]])

    return ReplicatedDraws(
        read,
        seeds,
        likelihood,
        reference,
        local=local,
        n_obs=n_obs,
        n_effective=None,
        point_estimate=point_estimate,
    )


def _one(
    values: NDArray[Any] | Tensor, dtype: torch.dtype | None, device: torch.device | str | None
) -> Tensor:
    if not isinstance(values, np.ndarray | Tensor):
        raise TypeError(
            f"replicate(seed) must return an array or a tensor, got {type(values).__name__}."
        )
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(
            "replicate(seed) must return data of shape (units, features), not empty, "
            f"got {tuple(values.shape)}."
        )
    return _as_tensor(values, dtype or _floating(values.dtype, given=False), device)


def _floating(dtype: Any, *, given: bool) -> torch.dtype:
    """Type of the replicates: floating-point types stay, integers and booleans become float64."""
    if isinstance(dtype, torch.dtype):
        floating, real = dtype if dtype.is_floating_point else None, not dtype.is_complex
    else:
        stored = np.dtype(dtype)
        floating, real = FLOATING.get(stored.name), stored.kind in "biuf"
    if floating is None and given:
        raise TypeError(f"dtype must be a floating type of torch, got {dtype}.")
    if not real:
        raise TypeError(f"replicates must be real numbers, got an array of {dtype}.")
    return floating or torch.float64


def _as_tensor(values: Any, dtype: torch.dtype, device: torch.device | str | None) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach().to(device=device, dtype=dtype)
    exact = next((name for name, same in FLOATING.items() if same == dtype), "float64")
    array = np.array(values, dtype=exact)  # a copy: torch cannot hold read-only memory
    return torch.from_numpy(array).to(device, dtype)


def _cannot_score(x: Tensor) -> Distribution:
    raise ValueError(
        "these draws cannot score data: they were made without a likelihood, so that only "
        "statistics, which ignore the draw (mean, feature_variance, zero_fraction, ...), can be "
        "checked, with kind='plugin'. Pass reference=, a function of data that returns their "
        "distribution at the posterior mean, or likelihood=, one of data and a draw."
    )


def _only_scores() -> Tensor:
    raise ValueError("the reference at the posterior mean scores data, it does not replicate.")
