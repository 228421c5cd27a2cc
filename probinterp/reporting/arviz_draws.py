"""Checks of replicates that lie in an ArviZ tree, an xarray data set or a file of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Distribution

from probinterp.criticism.adapters import ReplicatedDraws, Scoring, from_arrays
from probinterp.criticism.result import Local
from probinterp.reporting.arviz_version import open_groups, smallest_ess

if TYPE_CHECKING:
    import xarray as xr

SAME = 1e-6  # relative differences that a file of text or single precision makes
CHEAP_PARAMETERS = 500  # entries whose effective sample sizes take less than a second


class ArvizDraws(NamedTuple):
    """What :func:`probinterp.pop_pc` and :func:`probinterp.ppc` want of a tree.

    Attributes
    ----------
    draws
        Draws that hand out the stored replicates.
    x
        The data to compare with them, shape (N, G), in their floating type.
    """

    draws: ReplicatedDraws
    x: Tensor


def from_arviz(
    tree: Any,
    heldout: NDArray[Any] | Tensor | xr.DataArray | None = None,
    *,
    var_name: str | None = None,
    group: str | None = None,
    unit_dim: str | None = None,
    fitted: bool = False,
    likelihood: Scoring | None = None,
    reference: Callable[[Tensor], Distribution] | None = None,
    local: Local | None = None,
    n_obs: int | None = None,
    point_estimate: bool = False,
) -> ArvizDraws:
    """Draws and data from a tree of posterior predictive samples.

    Parameters
    ----------
    tree
        ``InferenceData`` or ``DataTree`` of ArviZ, a ``Dataset`` of replicates, or the path of a
        ``.nc`` or ``.zarr`` file, which is read piece by piece.
    heldout
        Data that the fit has not seen, of the shape of one replicate, or (N, G). Default: the
        group ``observed_data``, if the attribute ``heldout`` of the tree or the group is 1.
    var_name
        Name of the variable; may be left out where there is only one.
    group
        Group of the replicates. Default: ``predictions`` where there is one and the data are held
        out, else ``posterior_predictive``. Its dimensions are ``chain`` and ``draw`` (or
        ``sample``) and those of the data.
    unit_dim
        Dimension that counts units; default the first one of the data. The others are features.
    fitted
        Compare with the data of the fit instead, the group ``observed_data``: for
        :func:`probinterp.ppc`, the classical check, which uses the data twice.
    likelihood, reference, local, n_obs, point_estimate
        As for :func:`probinterp.criticism.from_arrays`; ``n_obs`` is read from ``observed_data``
        by default. The group ``log_likelihood`` cannot stand for a likelihood: it has the density
        of the data, but not that of the replicates.

    Returns
    -------
    ArvizDraws
        Draws and data. ``draws.n_effective`` is the smallest effective sample size in the group
        ``posterior``, if that has at most 500 numbers per draw.

    Raises
    ------
    KeyError
        If a group, a variable or a dimension is missing.
    TypeError
        If ``tree`` is none of the above.
    ValueError
        If the data do not fit the replicates, there is no choice of variable, or data that are
        said to be held out are those of the fit.
    """
    groups, attributes = open_groups(tree)
    if group is None:
        group = "posterior_predictive"
        if "predictions" in groups and not fitted:
            group = "predictions"
    variable = _with_draws(_variable(groups, group, var_name))
    replicated = StoredReplicates(variable, unit_dim)
    observed = groups.get("observed_data", {}).get(variable.name)
    data = _compared(observed, heldout, fitted, _says_heldout(groups, attributes))
    if n_obs is None and observed is not None and not _says_heldout(groups, attributes):
        n_obs = observed.sizes.get(replicated.unit_dim)
    draws = from_arrays(
        replicated,
        likelihood=likelihood,
        reference=reference,
        local=local,
        n_obs=n_obs,
        n_effective=_effective(groups.get("posterior"), replicated.shape[0]),
        point_estimate=point_estimate,
    )
    dtype = draws.replicate_chunk(0, 1).dtype
    return ArvizDraws(draws, torch.as_tensor(replicated.rows_of(data)).to(dtype))


class StoredReplicates:
    """A variable of a tree as an array (S, N, G) that is read in slices of draws.

    Parameters
    ----------
    variable
        Replicates with dimensions ``chain``, ``draw`` and those of the data.
    unit_dim
        Dimension that counts units, by default the first one of the data.

    Raises
    ------
    KeyError
        If there is no such dimension.
    """

    def __init__(self, variable: xr.DataArray, unit_dim: str | None = None) -> None:
        dims = [str(dim) for dim in variable.dims if dim not in ("chain", "draw")]
        if unit_dim is not None and unit_dim not in dims:
            raise KeyError(f"{variable.name!r} has no dimension {unit_dim!r}; it has {dims}.")
        if not dims:
            raise ValueError(f"{variable.name!r} is a single number per draw, not data of units.")
        self.unit_dim = unit_dim or dims[0]
        self.dims = [self.unit_dim, *(dim for dim in dims if dim != self.unit_dim)]
        self._variable, sizes = variable, variable.sizes
        self._sizes = tuple(sizes[dim] for dim in self.dims)
        n_features = int(np.prod(self._sizes[1:], dtype=np.int64))
        self.shape = (sizes["chain"] * sizes["draw"], self._sizes[0], n_features)
        self.dtype = variable.dtype

    def __getitem__(self, index: slice) -> NDArray[Any]:
        """Replicates of a range of draws, chain after chain."""
        start, stop, _ = index.indices(self.shape[0])
        length, parts = self._variable.sizes["draw"], []
        while start < stop:
            chain, first = divmod(start, length)
            last = min(length, first + stop - start)
            part = self._variable.isel(chain=chain, draw=slice(first, last))
            parts.append(part.transpose("draw", *self.dims).values.reshape(-1, *self.shape[1:]))
            start += last - first
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def rows_of(self, data: Any) -> NDArray[Any]:
        """Data of the shape of one replicate, or (N, G) already, as an array (N, G).

        Raises
        ------
        ValueError
            If they have another shape, or other labels.
        """
        if hasattr(data, "dims") and hasattr(data, "coords"):
            if sorted(map(str, data.dims)) != sorted(self.dims):
                raise ValueError(
                    f"the data have dimensions {list(data.dims)}, the replicates {self.dims}."
                )
            self._require_labels(data)
            data = data.transpose(*self.dims)
        array = data.detach().cpu().numpy() if isinstance(data, Tensor) else np.asarray(data)
        original = tuple(self._variable.sizes[d] for d in self._variable.dims[2:])
        if array.shape == original and array.shape != self._sizes:
            names = [str(dim) for dim in self._variable.dims[2:]]
            array = array.transpose([names.index(dim) for dim in self.dims])
        if array.shape not in (self._sizes, self.shape[1:]):
            raise ValueError(
                f"the data must have the shape of a replicate, {original}, or "
                f"(units, features) {self.shape[1:]}, got {array.shape}."
            )
        return array.reshape(self.shape[1:])

    def _require_labels(self, data: xr.DataArray) -> None:
        for dim in self.dims:
            if dim in data.coords and dim in self._variable.coords:
                ours, theirs = self._variable.coords[dim].values, data.coords[dim].values
                if not np.array_equal(ours, theirs):
                    raise ValueError(
                        f"the data have other labels along {dim!r} than the replicates."
                    )


def _variable(groups: Mapping[str, Any], group: str, name: str | None) -> xr.DataArray:
    if group not in groups:
        raise KeyError(f"the tree has no group {group!r}; it has {sorted(groups)}.")
    names = [str(variable) for variable in groups[group].data_vars]
    if name is None:
        if len(names) != 1:
            raise ValueError(f"{group!r} holds {names}; pass var_name.")
        name = names[0]
    if name not in names:
        raise KeyError(f"{group!r} has no variable {name!r}; it has {names}.")
    return groups[group][name]


def _with_draws(variable: xr.DataArray) -> xr.DataArray:
    """Dimensions ``chain`` and ``draw`` in front, whatever the samples were called."""
    if "sample" in variable.dims:
        variable = variable.reset_index("sample", drop=True).drop_vars("sample", errors="ignore")
        variable = variable.drop_vars(("chain", "draw"), errors="ignore").rename(sample="draw")
    if "draw" not in variable.dims:
        raise KeyError(
            f"{variable.name!r} needs dimensions 'chain' and 'draw', or 'sample', got "
            f"{list(variable.dims)}."
        )
    if "chain" not in variable.dims:
        variable = variable.drop_vars("chain", errors="ignore").expand_dims("chain")
    return variable.transpose("chain", "draw", ...)


def _says_heldout(groups: Mapping[str, Any], attributes: Mapping[str, Any]) -> bool:
    own = getattr(groups.get("observed_data"), "attrs", {})
    return bool(own.get("heldout", attributes.get("heldout", 0)))


def _compared(observed: Any, heldout: Any, fitted: bool, says_heldout: bool) -> Any:
    if fitted:
        if heldout is not None or observed is None:
            raise ValueError(
                "fitted=True compares with the group observed_data: it takes no heldout data, "
                "and the tree must hold that group."
            )
        return observed
    if heldout is None:
        if observed is None or not says_heldout:
            raise ValueError(
                "pass the held-out data: observed_data of a tree are those of the fit unless its "
                "attribute heldout is 1. For a classical check of the fitted data pass "
                "fitted=True and call ppc."
            )
        return observed
    if observed is not None and not says_heldout:
        values = heldout.detach().cpu().numpy() if isinstance(heldout, Tensor) else heldout
        ours, theirs = np.asarray(observed), np.asarray(values)
        same = ours.size == theirs.size and np.allclose(
            ours.ravel(), theirs.ravel(), rtol=SAME, atol=0, equal_nan=True
        )
        if same:
            raise ValueError(
                "the data are those of the group observed_data, which the fit has seen. Set the "
                "attribute heldout of that group to 1 if it has not; for a classical check of the "
                "fitted data pass fitted=True and call ppc."
            )
    return heldout


def _effective(posterior: Any, n_draws: int) -> float | None:
    """Smallest effective sample size of a posterior, where it is cheap to compute."""
    if posterior is None or not {"chain", "draw"} <= set(posterior.dims):
        return None
    numbers = [v for v in posterior.data_vars.values() if v.dtype.kind in "fiu"]
    per_draw = sum(v.size for v in numbers) // (posterior.sizes["chain"] * posterior.sizes["draw"])
    if not 0 < per_draw <= CHEAP_PARAMETERS or posterior.sizes["draw"] < 4:
        return None
    size = smallest_ess(posterior[[v.name for v in numbers]])
    return None if size is None else min(size, float(n_draws))
