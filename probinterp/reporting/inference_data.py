"""Results of checks as ArviZ trees of statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from probinterp.reporting.arrays import as_array, as_names
from probinterp.reporting.arviz_version import tree_of_arrays

if TYPE_CHECKING:
    from probinterp.criticism.result import PopPCResult

Groups = dict[str, dict[str, NDArray[np.float64]]]


def to_arviz(
    results: PopPCResult | Mapping[str, PopPCResult] | Sequence[PopPCResult],
    *,
    feature_names: Sequence[str] | None = None,
) -> Any:
    r"""Statistics of checks in the groups ``posterior_predictive`` and ``observed_data``.

    Every result is one variable: the replicated statistic with dimensions (chain, draw) and, for
    a result per feature, ``feature``, and the statistic of the held-out data. A single number
    has one dimension of length 1 in place of the features. For a realised check, whose held-out
    value depends on the draw, the variable is :math:`d^{rep}_s - d^{new}_s`, observed at 0,
    which has the same p-value.

    Parameters
    ----------
    results
        One result, several (named after their discrepancies), or results by name. All have the
        same number of draws, the same kind of check and the same data.
    feature_names
        Coordinates of results per feature; numbers from 1 by default.

    Returns
    -------
    arviz.InferenceData or xarray.DataTree
        What the installed ArviZ uses (before and from version 1). The attributes ``check``,
        ``heldout`` (1 for held-out data, 0 for those of the fit), ``n_new``, ``seed`` and
        ``creation_library`` are set on the tree and both groups, and ``kind`` and
        ``calibrated`` on each variable.

    Raises
    ------
    TypeError
        If ``results`` holds something else.
    ValueError
        If there is no result, a name occurs twice, names do not fit, or results differ in
        draws, check, data or seed.

    Notes
    -----
    A single number is drawn by ``plot_bpv(kind="t_stat")`` and from version 1 by
    ``plot_ppc_tstat`` and ``plot_ppc_interval``; densities and PIT values (``plot_ppc``,
    ``plot_ppc_dist``, ``plot_ppc_pit``) show results per feature, for one number they are empty.
    ArviZ's ``bpv`` is the share of replicates at most as large as the data: 1 - p, up to ties.
    """
    named = _by_name(results)
    groups, features = statistic_groups(named)
    attributes = tree_attributes(named)
    coords, dims = {}, {}
    if features:
        coords["feature"] = as_names("feature_names", feature_names, features)
        dims = {name: ["feature"] for name, r in named.items() if r.uniform.ndim == 1}
    elif feature_names is not None:
        raise ValueError("feature_names were given, but every result is a single number.")
    tree = tree_of_arrays(groups, coords=coords, dims=dims)
    for part in (tree, *(tree[group] for group in groups)):
        part.attrs.pop("creation_library_version", None)  # ArviZ's own, set from version 1
        part.attrs.update(attributes)
    for group in groups:
        for name, result in named.items():
            marks = {"kind": result.kind, "calibrated": int(result.calibrated)}
            tree[group][name].attrs.update(marks)
    return tree


def _by_name(results: Any) -> dict[str, PopPCResult]:
    if hasattr(results, "replicated"):
        results = [results]
    named: dict[str, PopPCResult] = {}
    items = list(results.items()) if isinstance(results, Mapping) else [(None, r) for r in results]
    for name, result in items:
        if not hasattr(result, "replicated"):
            raise TypeError(f"results must be results of checks, got {type(result).__name__}.")
        name = result.discrepancy if name is None else str(name)
        if name in named:
            raise ValueError(f"two results are named {name!r}; pass a dict with distinct names.")
        named[name] = result
    if not named:
        raise ValueError("to_arviz needs at least one result, got none.")
    return named


def statistic_groups(named: Mapping[str, PopPCResult]) -> tuple[Groups, int]:
    """Arrays of the two groups, replicates (1, S, 1 or G), and G, 0 if no result has features.

    Raises
    ------
    ValueError
        If results per feature differ in their number of features.
    """
    replicated: dict[str, NDArray[np.float64]] = {}
    observed: dict[str, NDArray[np.float64]] = {}
    sizes = {name: len(r.uniform) for name, r in named.items() if r.uniform.ndim == 1}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"results have different numbers of features: {sizes}.")
    for name, result in named.items():
        n_dims = result.uniform.ndim + 1
        rep = as_array(name, result.replicated, n_dims).reshape(result.n_draws, -1)
        new = as_array(name, result.heldout, n_dims).reshape(len(result.heldout), -1)
        if len(new) > 1:
            rep, new = rep - new, np.zeros((1, new.shape[1]))
        replicated[name], observed[name] = rep[np.newaxis], new[0]
    groups = {"posterior_predictive": replicated, "observed_data": observed}
    return groups, next(iter(sizes.values()), 0)


def tree_attributes(named: Mapping[str, PopPCResult]) -> dict[str, str | int]:
    """Attributes that all results share, as netCDF can store them.

    Raises
    ------
    ValueError
        If results differ in one of them.
    """
    for field in ("check", "n_draws", "n_new", "seed"):
        values = {name: getattr(result, field) for name, result in named.items()}
        if len(set(values.values())) > 1:
            raise ValueError(f"results in one tree must share {field}, got {values}.")
    first = next(iter(named.values()))
    return {
        "check": first.check,
        "heldout": int(first.check == "pop-pc"),
        "n_new": first.n_new,
        "seed": first.seed,
        "creation_library": "probinterp",
    }
