"""Differences between ArviZ before and from version 1, kept in one place."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray


def import_arviz() -> ModuleType:
    """ArviZ, without the notice about its own future that 0.23 gives once a day on import."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing", FutureWarning)
        import arviz
    return arviz


def is_before_1(arviz: ModuleType) -> bool:
    """Whether trees are ``InferenceData``; from version 1 they are ``xarray.DataTree``."""
    return int(arviz.__version__.split(".")[0]) < 1


def tree_of_arrays(groups: Mapping[str, Any], **options: Any) -> Any:
    """``arviz.from_dict`` for arrays by group and variable."""
    arviz = import_arviz()
    if is_before_1(arviz):
        return arviz.from_dict(**groups, **options)
    return arviz.from_dict(dict(groups), **options)


def open_groups(tree: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Datasets by group, and the attributes of the whole.

    Parameters
    ----------
    tree
        ``InferenceData``, ``xarray.DataTree``, a ``xarray.Dataset`` (taken for the group
        ``posterior_predictive``), or the path of a ``.nc`` or ``.zarr`` file that holds groups;
        files are read when their values are asked for.

    Raises
    ------
    TypeError
        If it is something else.
    FileNotFoundError, ValueError
        If the path does not exist, or has another ending.
    """
    import xarray as xr

    if isinstance(tree, str | Path):
        tree = _open(Path(tree))
    if isinstance(tree, xr.Dataset):
        groups = {"posterior_predictive": tree}
    elif isinstance(tree, xr.DataTree):
        groups = {name: node.to_dataset() for name, node in tree.children.items()}
    elif callable(getattr(tree, "groups", None)):
        groups = {name: tree[name] for name in tree.groups()}
    else:
        raise TypeError(
            "expected an ArviZ InferenceData, a DataTree, a Dataset or a path, got "
            f"{type(tree).__name__}."
        )
    return groups, {str(name): value for name, value in tree.attrs.items()}


def loo_of_groups(groups: Mapping[str, Any], name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """PIT values of leave-one-out prediction and Pareto k, each of the shape of the variable."""
    import xarray as xr

    arviz = import_arviz()
    if is_before_1(arviz):
        tree = arviz.InferenceData(**groups)
        pit = arviz.loo_pit(tree, y=name)
    else:
        tree = xr.DataTree.from_dict(dict(groups))
        pit = arviz.loo_pit(tree, var_names=name)[name]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Estimated shape parameter")  # k is returned instead
        found = arviz.loo(tree, var_name=name, pointwise=True)
    return np.asarray(pit, dtype=np.float64), np.asarray(found.pareto_k, dtype=np.float64)


def smallest_ess(posterior: Any) -> float | None:
    """Smallest effective sample size of the mean of any entry of a Dataset, if any varies."""
    found = import_arviz().ess(posterior, method="mean")
    sizes = np.concatenate([np.ravel(found[name]) for name in found.data_vars])
    sizes = sizes[np.isfinite(sizes)]
    return float(sizes.min()) if sizes.size else None


def _open(path: Path) -> Any:
    import xarray as xr

    engines = {".nc": None, ".zarr": "zarr"}
    if path.suffix not in engines:
        raise ValueError(f"expected a .nc or .zarr file, got {path.name!r}.")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    return xr.open_datatree(path, engine=engines[path.suffix])
