"""Checks of models of scvi-tools, and of others that sample from their posterior predictive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from anndata import AnnData
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Distribution

from probinterp.criticism.adapters import ReplicatedDraws, from_callable
from probinterp.genomics.compat import matrix_of

NORMAL_PRIOR_MODULES = ("VAE", "LDVAE")  # of scvi-tools: z ~ N(0, I), one encoder, one decoder


class CellDraws(NamedTuple):
    """What :func:`probinterp.pop_pc` wants of cells that a fit has not seen.

    Attributes
    ----------
    draws
        Draws that replicate the cells.
    x
        The cells themselves, shape (N, G), float32.
    """

    draws: ReplicatedDraws
    x: Tensor


def from_posterior_predictive_sample(
    model: Any,
    adata: AnnData | None = None,
    *,
    indices: Sequence[int] | NDArray[np.integer[Any]],
    n_draws: int,
    local: Literal["prior", "posterior"] = "prior",
    layer: str | None = None,
    batch_size: int = 512,
    seed: int = 0,
) -> CellDraws:
    r"""Draws from a fitted model that has a method ``posterior_predictive_sample``.

    That method draws the latents of every cell from :math:`q(z \mid x)` of the **same** cell
    that it is then compared with, held out or not: it cannot see a wrong prior, and p-values
    lean to the middle. Replicates with latents from the prior need the generative module.

    Parameters
    ----------
    model
        Fitted model of scvi-tools, or any object with the method
        ``posterior_predictive_sample(adata, indices=, n_samples=)``.
    adata
        Cells in the layout that the model was set up with; default ``model.adata``.
    indices
        Positions of the held-out cells in it. In the model's own object they must not be among
        ``model.train_indices``; cells that stopped the training early are not quite unseen
        either.
    n_draws
        Number of replicates, S.
    local
        ``"prior"``: the cells' latents are drawn from :math:`N(0, I)`, given their batch,
        covariates and observed library size; possible for modules of scvi-tools of the kind
        ``VAE`` and ``LDVAE``. ``"posterior"``: what ``posterior_predictive_sample`` does; the
        result is labelled as not calibrated.
    layer
        Layer that holds the modelled counts; default ``X``.
    batch_size
        Cells at a time.
    seed
        Same seed, same draws.

    Returns
    -------
    CellDraws
        Draws and data. Parameters of the networks are point estimates, and labelled so. With a
        module as for ``"prior"`` the draws also score data, at the mean of
        :math:`q(z \mid x)` inferred from the data they score; otherwise only statistics can be
        checked.

    Raises
    ------
    TypeError
        If the model has no such method, or no module to draw from the prior with.
    ValueError
        If it is not fitted, an option is unknown, or cells were fitted, occur twice or do not
        exist.

    References
    ----------
    Deep generative modeling for single-cell transcriptomics (Lopez et al., 2018); Holdout
    predictive checks for Bayesian model criticism (Moran, Blei and Ranganath, 2024).
    """
    adata = _checked_source(model, adata, local)
    train = getattr(model, "train_indices", None)
    own = adata is getattr(model, "adata", adata)
    positions = _heldout_positions(indices, adata.n_obs, train if own else None)
    module = _NormalPriorModule(model, adata, positions, batch_size) if _has_module(model) else None

    def replicate(seed: int) -> NDArray[np.float32] | Tensor:
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            if local == "prior" and module is not None:
                return module.replicate()
            cells = positions.tolist()
            return _dense(model.posterior_predictive_sample(adata, indices=cells, n_samples=1))

    draws = from_callable(
        replicate,
        n_draws,
        likelihood=None if module is None else lambda x, seed: module.likelihood(x),
        reference=None if module is None else module.likelihood,
        local=local,
        n_obs=None if train is None else len(train),
        point_estimate=True,
        seed=seed,
        dtype=torch.float32,
    )
    x = torch.from_numpy(_dense(matrix_of(adata, layer)[np.sort(positions)]))
    return CellDraws(draws, x[np.argsort(np.argsort(positions))])


class _NormalPriorModule:
    """The generative half of a module of scvi-tools, for some cells."""

    def __init__(
        self, model: Any, adata: AnnData, positions: NDArray[np.int64], batch_size: int
    ) -> None:
        self._model, self._adata = model, adata
        self._positions, self._batch_size = positions, batch_size
        self._module = model.module

    def replicate(self) -> Tensor:
        """Counts of the cells with new latents, shape (N, G)."""
        parts = []
        for tensors in self._batches():
            inferred = self._infer(tensors)
            z = torch.randn_like(inferred["z"])
            inferred["z"] = self._module.z_encoder.z_transformation(z)
            generated = self._generate(tensors, inferred)
            if generated["pl"] is not None:  # the library size is a latent too
                inferred["library"] = generated["pl"].sample()
                generated = self._generate(tensors, inferred)
            parts.append(generated["px"].sample().cpu())
        return torch.cat(parts)

    def likelihood(self, x: Tensor) -> Distribution:
        """Law of counts (N, G) with latents at their mean given these counts."""
        found, start = [], 0
        for tensors in self._batches():
            n_cells = len(tensors["X"])
            tensors = tensors | {"X": x[start : start + n_cells].to(tensors["X"])}
            inferred = self._infer(tensors)
            inferred["z"] = self._module.z_encoder.z_transformation(inferred["qz"].mean)
            if inferred["ql"] is not None:
                inferred["library"] = inferred["ql"].mean
            found.append(self._generate(tensors, inferred)["px"])
            start += n_cells
        return _CellLaw(found, x)

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        adata = self._model._validate_anndata(self._adata)
        loader = self._model._make_data_loader(
            adata=adata, indices=self._positions.tolist(), batch_size=self._batch_size
        )
        self._module.eval()
        yield from loader

    def _infer(self, tensors: dict[str, Tensor]) -> dict[str, Any]:
        return dict(self._module.inference(**self._module._get_inference_input(tensors)))

    def _generate(self, tensors: dict[str, Tensor], inferred: dict[str, Any]) -> dict[str, Any]:
        inputs = self._module._get_generative_input(tensors, inferred)
        return dict(self._module.generative(**inputs))


class _CellLaw(Distribution):
    """Laws of blocks of cells as one distribution: batch (N,), event (G,).

    Those of scvi-tools know their parameters but not their shapes.
    """

    arg_constraints = {}

    def __init__(self, blocks: list[Any], x: Tensor) -> None:
        self._blocks, self._device = blocks, x.device
        super().__init__(x.shape[:1], x.shape[1:], validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        parts = value.split([len(block.mean) for block in self._blocks])
        terms = zip(self._blocks, parts, strict=True)
        return torch.cat([b.log_prob(v.to(b.mean.device)).sum(1).to(v.device) for b, v in terms])

    @property
    def mean(self) -> Tensor:
        return torch.cat([block.mean for block in self._blocks]).to(self._device)

    @property
    def variance(self) -> Tensor:
        return torch.cat([_variance(block) for block in self._blocks]).to(self._device)


def _variance(law: Any) -> Tensor:
    """Variance, also of the zero-inflated law, whose own is not implemented."""
    if not hasattr(law, "zi_probs"):
        return law.variance
    kept, counts = 1 - law.zi_probs, law.mu + law.mu.square() / law.theta
    return kept * (counts + law.zi_probs * law.mu.square())


def _checked_source(model: Any, adata: AnnData | None, local: str) -> AnnData:
    """The cells to work on, once the model can be asked for them in the way that is wanted."""
    if not callable(getattr(model, "posterior_predictive_sample", None)):
        raise TypeError(f"{type(model).__name__} has no method posterior_predictive_sample.")
    if getattr(model, "is_trained", True) is False:
        raise ValueError(f"the {type(model).__name__} is not fitted yet.")
    if local not in ("prior", "posterior"):
        raise ValueError(f"local must be 'prior' or 'posterior', got {local!r}.")
    if local == "prior" and not _has_module(model):
        raise TypeError(
            f"latents of a {type(model).__name__} cannot be drawn from their prior here (its "
            f"module is none of {', '.join(NORMAL_PRIOR_MODULES)}). local='posterior' compares "
            "cells with replicates whose latents were inferred from these very cells, which is "
            "no calibrated check of held-out data."
        )
    adata = getattr(model, "adata", None) if adata is None else adata
    if adata is None:
        raise ValueError("pass adata: the model does not hold its own.")
    return adata


def _has_module(model: Any) -> bool:
    return type(getattr(model, "module", None)).__name__ in NORMAL_PRIOR_MODULES


def _heldout_positions(indices: Any, n_obs: int, train: Any) -> NDArray[np.int64]:
    positions = np.asarray(indices)
    if positions.ndim != 1 or positions.size == 0 or positions.dtype.kind not in "iu":
        raise ValueError(
            f"indices must be a list of positions, not empty, got shape {positions.shape} of "
            f"{positions.dtype}."
        )
    if positions.min() < 0 or positions.max() >= n_obs:
        raise ValueError(f"indices must lie in 0 to {n_obs - 1}.")
    if len(np.unique(positions)) < len(positions):
        raise ValueError("indices holds cells twice.")
    seen = 0 if train is None else int(np.isin(positions, np.asarray(train)).sum())
    if seen:
        raise ValueError(
            f"{seen} of {len(positions)} cells are among the model's train_indices; take cells "
            "that the fit has not seen."
        )
    return positions.astype(np.int64)


def _dense(matrix: Any) -> NDArray[np.float32]:
    if hasattr(matrix, "todense"):
        matrix = matrix.toarray() if sp.issparse(matrix) else matrix.todense()
    return np.ascontiguousarray(matrix, dtype=np.float32)
