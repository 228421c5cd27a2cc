"""Population predictive checks: replicated against held-out data, one draw at a time."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from probinterp.criticism.draws import Discrepancy, PredictiveDraw
from probinterp.criticism.reference import ReferenceArgument, find_reference
from probinterp.criticism.regime import RegimeNumber
from probinterp.criticism.reservations import Objection, notes_on, objections_to
from probinterp.criticism.result import (
    Check,
    Kind,
    Local,
    PopPCResult,
)
from probinterp.criticism.stream import seeded, stream


def pop_pc(
    draws: Iterable[PredictiveDraw],
    x_new: Tensor,
    discrepancy: Discrepancy,
    *,
    kind: Kind = "plugin",
    reference: ReferenceArgument = None,
    n_reference: int = 32,
    seed: int = 0,
    n_obs: int | None = None,
) -> PopPCResult:
    r"""Compare held-out data with replicates drawn from the fitted model.

    .. math:: p = \Pr\big(d(x^{rep}, \cdot) \ge d(x^{new}, \cdot) \mid x^{obs}\big), \qquad
        \theta_s \sim p(\theta \mid x^{obs}), \quad x^{rep}_s \sim p(x \mid \theta_s)

    Under a correct model p is uniform for any split of the data when the discrepancy is a fixed
    function, which the kinds ``"plugin"`` and ``"predictive"`` make it. Draws are consumed one
    at a time and only discrepancies are kept: memory O(N G).

    Parameters
    ----------
    draws
        Posterior draws that replicate. Attributes are used where the object has them:
        ``reference`` (draw at the posterior mean), ``reference_draws`` (draws kept apart from
        those that replicate), ``local`` (``"prior"`` or ``"posterior"``), ``point_estimate``
        (True if global parameters were point-estimated) and ``n_obs``.
    x_new
        Held-out data, shape (N, G), floating point; nothing of it may have entered the fit.
    discrepancy
        Pure function ``(x, draw) -> Tensor``, a scalar or one value per feature or unit.
    kind
        ``"plugin"``: the discrepancy is evaluated at one reference draw for both data sets.
        ``"predictive"``: at the equal mixture of several reference draws that do not replicate.
        ``"realised"``: at each draw; not calibrated unless the regime number is small.
    reference
        A draw for ``"plugin"``, draws for ``"predictive"``. Default: the attribute of ``draws``,
        else the first draw (the first ``n_reference`` draws) is set aside and does not replicate.
        A single plug-in draw serves as both.
    n_reference
        How many draws ``"predictive"`` sets aside when it is given none. Every replicate costs
        that many likelihood evaluations.
    seed
        Seed of the uniform numbers that break ties and of torch's global generators while the
        draws replicate, restored afterwards. Give every data set of a simulation its own.
    n_obs
        Number of units of the fit; default ``draws.n_obs``. Only used to judge whether a check
        of point-estimated parameters can be trusted.

    Returns
    -------
    PopPCResult
        Pointwise discrepancies, p-values, effect size, Monte-Carlo error, notes and a verdict.

    Raises
    ------
    TypeError
        If an argument, a draw or a discrepancy is of the wrong type.
    ValueError
        If shapes or values do not fit: NaN in the data, the replicates or the discrepancy, a
        replicate unlike ``x_new``, no draws, an unknown kind, a reference that replicates.

    Warns
    -----
    RegimeWarning
        A realised check with a regime number above .2, or one that cannot be computed.
    PointEstimateWarning
        Global parameters were point-estimated and ``n_obs`` is not known.
    HeldoutSizeWarning
        They were, and ``x_new`` has more than a tenth as many units as the fit.
    LocalDoubleUseWarning
        The replicates' local latents were inferred from ``x_new`` itself.

    References
    ----------
    Population predictive checks (Ranganath and Blei, 2019), equation for the Pop-PC; Holdout
    predictive checks for Bayesian model criticism (Moran, Blei and Ranganath, 2024).

    Examples
    --------
    >>> import torch
    >>> from torch.distributions import Independent, Normal
    >>> from probinterp.criticism import FunctionDraw, discrepancies
    >>> law = Independent(Normal(torch.zeros(50, 3), 1.0), 1)
    >>> draws = [FunctionDraw(law.sample, lambda x: law) for _ in range(200)]
    >>> result = pop_pc(draws, 2 * law.sample(), discrepancies.chi_square)
    >>> result.p_value.item()
    0.0
    """
    result, objections = _check(
        "pop-pc", draws, x_new, discrepancy, kind, reference, n_reference, seed, n_obs
    )
    for category, message in objections:
        warnings.warn(message, category, stacklevel=2)
    return result


def ppc(
    draws: Iterable[PredictiveDraw],
    x_obs: Tensor,
    discrepancy: Discrepancy,
    *,
    kind: Kind = "plugin",
    reference: ReferenceArgument = None,
    n_reference: int = 32,
    seed: int = 0,
) -> PopPCResult:
    r"""Classical posterior predictive check: compare the replicates with the data of the fit.

    The data are used twice, so that p is **not** uniform under a correct model: conservative for
    realised discrepancies and for statistics that the model fits by construction,
    anti-conservative for plug-in ones. Offered for contrast with :func:`pop_pc`; the result is
    labelled accordingly.

    Parameters
    ----------
    draws
        Posterior draws that replicate data of the size of ``x_obs``, as for :func:`pop_pc`.
    x_obs
        The data of the fit, shape (N, G), floating point.
    discrepancy, kind, reference, n_reference, seed
        As for :func:`pop_pc`.

    Returns
    -------
    PopPCResult
        With ``check="ppc"`` and ``calibrated=False``; ``heldout`` holds the discrepancy of
        ``x_obs``.

    Raises
    ------
    TypeError, ValueError
        As :func:`pop_pc`.
    """
    n_obs = len(x_obs) if isinstance(x_obs, Tensor) and x_obs.ndim else None
    return _check("ppc", draws, x_obs, discrepancy, kind, reference, n_reference, seed, n_obs)[0]


def _check(
    check: Check,
    draws: Iterable[PredictiveDraw],
    x: Tensor,
    discrepancy: Discrepancy,
    kind: Kind,
    reference: ReferenceArgument,
    n_reference: int,
    seed: int,
    n_obs: int | None,
) -> tuple[PopPCResult, list[Objection]]:
    _validate(draws, x, discrepancy, kind, n_reference)
    local, n_obs = _local(draws), _n_obs(draws, n_obs)
    tie_seed, draw_seed = np.random.SeedSequence(seed).generate_state(2, np.uint64).tolist()
    regime = RegimeNumber() if kind == "realised" and check == "pop-pc" else None
    with torch.no_grad(), seeded(draw_seed, x.device):
        found = find_reference(draws, kind, reference, n_reference)
        values = stream(found, x, discrepancy, regime)
    generator = torch.Generator().manual_seed(tie_seed)
    shape = values.replicated.shape[1:]
    objections = [] if check == "ppc" else objections_to(draws, kind, values, len(x), n_obs)
    result = PopPCResult(
        check=check,
        discrepancy=getattr(discrepancy, "__name__", repr(discrepancy)),
        kind=kind,
        heldout=values.heldout,
        replicated=values.replicated,
        uniform=torch.rand(shape, generator=generator, dtype=torch.float64),
        n_new=x.shape[0],
        n_features=x.shape[1],
        n_obs=n_obs,
        seed=seed,
        reference=found.source,
        local=local,
        regime=values.regime,
        calibrated=check == "pop-pc" and not objections and not found.also_replicates,
        notes=tuple(text for _, text in objections) + notes_on(draws, check, values, found),
    )
    return result, objections


def _validate(
    draws: Iterable[PredictiveDraw], x: Tensor, discrepancy: Discrepancy, kind: str, n: int
) -> None:
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}.")
    if not callable(discrepancy):
        raise TypeError(
            f"discrepancy must be a function (x, draw) -> Tensor, got {type(discrepancy).__name__}."
        )
    if isinstance(draws, PredictiveDraw):
        raise TypeError(
            f"draws must be an iterable of draws, got a single {type(draws).__name__}; "
            "put it in a list."
        )
    if not isinstance(draws, Iterable):
        raise TypeError(f"draws must be an iterable of draws, got {type(draws).__name__}.")
    if n < 1:
        raise ValueError(f"n_reference must be at least 1, got {n}.")
    if not isinstance(x, Tensor):
        raise TypeError(f"the data must be a torch.Tensor, got {type(x).__name__}.")
    if x.ndim != 2 or x.numel() == 0:
        raise ValueError(f"the data must have shape (N, G), not empty, got {tuple(x.shape)}.")
    if not x.is_floating_point():
        raise TypeError(f"the data must be floating point, got {x.dtype}; use x.float().")
    if (bad := int((~x.isfinite()).sum())) > 0:
        raise ValueError(f"the data have {bad} NaN or infinite entries of {x.numel()}.")


def _local(draws: object) -> Local | None:
    local = getattr(draws, "local", None)
    if local not in (None, *get_args(Local)):
        raise ValueError(f"draws.local must be 'prior' or 'posterior', got {local!r}.")
    return local


def _n_obs(draws: object, n_obs: int | None) -> int | None:
    n_obs = getattr(draws, "n_obs", None) if n_obs is None else n_obs
    if n_obs is not None and n_obs < 1:
        raise ValueError(f"n_obs must be at least 1, got {n_obs}.")
    return n_obs
