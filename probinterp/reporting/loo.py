"""Leave-one-out predictive checks through ArviZ, for comparison with held-out ones."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from probinterp.reporting.arviz_version import loo_of_groups, open_groups

NEEDED = ("posterior", "posterior_predictive", "log_likelihood", "observed_data")
RELIABLE_K = 0.7


class LooPit(NamedTuple):
    r"""Probability integral transforms of leave-one-out prediction.

    Attributes
    ----------
    values
        :math:`\Pr(x^{rep}_i \le x_i \mid x_{-i})`, of the shape of the data.
    pareto_k
        Reliability of each value: above .7 the importance weights cannot be trusted.
    notes
        What a reader should know, in sentences.
    """

    values: NDArray[np.float64]
    pareto_k: NDArray[np.float64]
    notes: tuple[str, ...]


def loo_pit(tree: Any, *, var_name: str | None = None) -> LooPit:
    r"""PIT values of every observation given all others, from one fit.

    .. math:: u_i = \Pr(x^{rep}_i \le x_i \mid x_{-i}),

    approximated by Pareto-smoothed importance sampling. Under a correct model they are nearly
    uniform one by one, but dependent on each other, so that tests of uniformity that take them
    for independent do not hold their level.

    Parameters
    ----------
    tree
        As for :func:`from_arviz`, with the groups ``posterior``, ``posterior_predictive``,
        ``log_likelihood`` and ``observed_data``.
    var_name
        Name of the variable; may be left out where there is only one.

    Returns
    -------
    LooPit
        Pointwise values and how far they can be trusted.

    Raises
    ------
    KeyError
        If a group or the variable is missing.
    ValueError
        If there are several variables and no choice.

    References
    ----------
    Practical Bayesian model evaluation using leave-one-out cross-validation and WAIC (Vehtari,
    Gelman and Gabry, 2017).
    """
    groups, _ = open_groups(tree)
    if missing := [name for name in NEEDED if name not in groups]:
        raise KeyError(f"loo_pit needs the groups {list(NEEDED)}; missing: {missing}.")
    names = [str(name) for name in groups["observed_data"].data_vars]
    if var_name is None and len(names) != 1:
        raise ValueError(f"the tree observes {names}; pass var_name.")
    name = names[0] if var_name is None else var_name
    if lacking := [g for g in NEEDED[1:] if name not in groups[g].data_vars]:
        raise KeyError(f"no variable {name!r} in {lacking}; observed_data has {names}.")
    values, k = loo_of_groups({group: groups[group] for group in NEEDED}, name)
    notes = [
        "LOO-PIT values are dependent: read them as a picture, not by a test that takes them for "
        "independent."
    ]
    if unreliable := int((k > RELIABLE_K).sum()):
        notes.append(
            f"{unreliable} of {k.size} values have a Pareto k above {RELIABLE_K} and cannot be "
            "trusted."
        )
    return LooPit(values, k, tuple(notes))
