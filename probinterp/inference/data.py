"""Data that minibatches can be cut from: anything with ``len`` and ``batch(index)``."""

from __future__ import annotations

import warnings
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from probinterp.models.base import AnyBatch, Batch

SomeBatch = TypeVar("SomeBatch", bound=AnyBatch)


@runtime_checkable
class Data(Protocol):
    """What :func:`probinterp.fit` needs of a data set.

    An optional attribute ``block_size`` says how many neighbouring observations are cheapest to
    read together; minibatches are then made of shuffled blocks.
    """

    def __len__(self) -> int: ...

    def batch(self, index: Tensor | None = None) -> Any:
        """Observations ``index`` (int64, on the CPU), or all of them, as the model's batch."""


class ArrayData:
    """Observations in memory, dense or sparse by rows.

    Parameters
    ----------
    x
        Observations, (N, G): a dense tensor or a ``torch.sparse_csr`` tensor. Sparse rows stay
        sparse in :meth:`batch`; they become dense on the device that the model is on.
    size_factor
        Relative library size of each observation, (N,), or None.
    study
        Index of the study of each observation, (N,), or None.
    mask
        True where an entry of ``x`` is observed, (N, G) boolean, or None where all are. The other
        entries may hold anything, NaN too; a dense ``x`` is copied with zeros there.
    nuisance
        Index of the technical batch of each observation, (N,), or None.

    Raises
    ------
    ValueError
        If ``x`` is not a matrix, the shapes differ, ``mask`` is not boolean, or an index is not
        an integer or lies below -1 (an unknown study) or 0 (a batch).
    """

    def __init__(
        self,
        x: Tensor,
        size_factor: Tensor | None = None,
        study: Tensor | None = None,
        mask: Tensor | None = None,
        nuisance: Tensor | None = None,
    ) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}.")
        if x.ndim != 2:
            raise ValueError(f"x must have shape (N, G), got {tuple(x.shape)}.")
        columns = {"size_factor": size_factor, "study": study, "nuisance": nuisance}
        for name, value in columns.items():
            if value is not None and value.shape != x.shape[:1]:
                raise ValueError(
                    f"{name} must have shape ({len(x)},), got {tuple(value.shape)}: "
                    "one value per observation."
                )
        _require_index(study=(study, -1), nuisance=(nuisance, 0))
        if mask is not None and (mask.shape != x.shape or mask.dtype != torch.bool):
            raise ValueError(
                f"mask must be boolean with the shape of x, {tuple(x.shape)}, "
                f"got {mask.dtype} with shape {tuple(mask.shape)}."
            )
        if mask is not None and x.layout == torch.strided:
            x = x.masked_fill(~mask, 0)
        self.x, self.size_factor, self.study, self.mask = x, size_factor, study, mask
        self.nuisance = nuisance

    @classmethod
    def of(cls, batch: Batch) -> ArrayData:
        """The observations of a batch as data."""
        return cls(batch.x, batch.size_factor, batch.study, batch.mask, batch.nuisance)

    def __len__(self) -> int:
        return self.x.shape[0]

    def batch(self, index: Tensor | None = None) -> Batch:
        """Observations ``index`` (B,), or all of them, as a :class:`Batch`."""
        if index is None:
            return Batch(self.x, self.study, self.size_factor, self.mask, self.nuisance)
        return Batch(
            select_rows(self.x, index),
            None if self.study is None else self.study[index],
            None if self.size_factor is None else self.size_factor[index],
            None if self.mask is None else self.mask[index],
            None if self.nuisance is None else self.nuisance[index],
        )

    def subset(self, index: Tensor) -> ArrayData:
        """Keep the observations ``index``, in that order."""
        return ArrayData.of(self.batch(index))


class BatchData:
    """Observations of a dense batch in memory, whatever its fields.

    Parameters
    ----------
    whole
        All observations; fields other than ``x`` may be None.
    """

    def __init__(self, whole: AnyBatch) -> None:
        self.whole = whole

    def __len__(self) -> int:
        return len(self.whole.x)

    def batch(self, index: Tensor | None = None) -> AnyBatch:
        """Observations ``index`` (B,), or all of them."""
        return self.whole if index is None else self.whole.rows(index)


def data_of(batch: AnyBatch) -> Data:
    """The observations of a batch as data."""
    return ArrayData.of(batch) if isinstance(batch, Batch) else BatchData(batch)


def _require_index(**indices: tuple[Tensor | None, int]) -> None:
    for name, (index, least) in indices.items():
        if index is None:
            continue
        if index.is_floating_point() or index.dtype == torch.bool:
            raise ValueError(f"{name} must hold integers, got {index.dtype}.")
        if len(index) and int(index.min()) < least:
            raise ValueError(f"{name} must be at least {least}, got {int(index.min())}.")


def select_rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` of a dense or ``sparse_csr`` matrix, in the layout of ``x``."""
    if x.layout != torch.sparse_csr:
        return x[index]
    start, stop = x.crow_indices()[index], x.crow_indices()[index + 1]
    length = stop - start
    crow = torch.cat([length.new_zeros(1), length.cumsum(0)])
    # position in the source = position in the result + offset of the row it belongs to
    source = torch.arange(int(crow[-1])) + torch.repeat_interleave(start - crow[:-1], length)
    columns, values = x.col_indices()[source], x.values()[source]
    return csr_tensor(crow.to(columns.dtype), columns, values, (len(index), x.shape[1]))


def csr_tensor(crow: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """Sparse matrix by rows, without torch's one-time notice that the layout is in beta."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        return torch.sparse_csr_tensor(crow, columns, values, shape, check_invariants=False)


def to_device(batch: SomeBatch, device: torch.device) -> SomeBatch:
    """Move a batch to ``device``; a sparse ``x`` becomes dense there."""
    pinned = device.type == "cuda"

    def move(value: Tensor | None) -> Tensor | None:
        if value is None or value.device == device:
            return value
        value = value.pin_memory() if pinned and value.layout == torch.strided else value
        return value.to(device, non_blocking=pinned)

    x, *others = (move(value) for value in batch)
    assert x is not None
    dense = x if x.layout == torch.strided else x.to_dense()
    return type(batch)(dense, *others)  # type: ignore[arg-type]


def as_batch(data: Data | AnyBatch, device: torch.device | None = None) -> Any:
    """Whole of ``data`` as one dense batch on ``device`` (default: the CPU)."""
    batch = data if isinstance(data, AnyBatch) else data.batch()
    return to_device(batch, torch.device("cpu") if device is None else device)


def minibatch_order(
    n: int, batch_size: int, *, seed: int, epoch: int, block_size: int = 1
) -> list[Tensor]:
    """Indices of one epoch's minibatches; every observation stands in exactly one of them.

    The order depends on ``seed`` and ``epoch`` alone. With ``block_size > 1`` blocks of
    neighbouring observations are shuffled, then the observations within groups of 16 blocks, so
    that files are read in long runs. A last minibatch of one observation joins the one before.
    """
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    if block_size == 1:
        order = torch.randperm(n, generator=generator)
    else:
        blocks = torch.arange(n).split(block_size)
        chosen = [blocks[i] for i in torch.randperm(len(blocks), generator=generator).tolist()]
        buffers = [torch.cat(chosen[i : i + 16]) for i in range(0, len(chosen), 16)]
        order = torch.cat([b[torch.randperm(len(b), generator=generator)] for b in buffers])
    batches = list(order.split(batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches
