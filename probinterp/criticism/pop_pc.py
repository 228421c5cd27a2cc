"""Population predictive checks: replicated against held-out data, one draw at a time."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping

from torch import Tensor

from probinterp.criticism.discrepancies.custom import name_of
from probinterp.criticism.draws import Discrepancy, PredictiveDraw
from probinterp.criticism.evaluation import Calibration, Plan, evaluate
from probinterp.criticism.reference import ReferenceArgument
from probinterp.criticism.refits import Refits
from probinterp.criticism.reservations import Objection
from probinterp.criticism.result import Kind, PopPCResult
from probinterp.criticism.stopping import SequentialStop


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
    stop: SequentialStop | None = None,
    calibrate_refits: int = 0,
    refits: Refits | None = None,
    n_jobs: int | None = None,
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
        (True if global parameters were point-estimated), ``n_obs``, and ``n_effective`` (effective
        number of autocorrelated draws). ``local`` may be ``"observed"`` or ``"covariates"`` as
        well. Where the draws are a list or a generator, the first of them is asked for ``local``
        and ``point_estimate``. Draws with a method ``replicate_chunk(start, stop)`` hand over
        several replicates at a time.
    x_new
        Held-out data, shape (N, G), floating point; nothing of it may have entered the fit. A unit
        may be an array, (N, L, D), for draws and discrepancies that know it.
    discrepancy
        Pure function ``(x, draw) -> Tensor``, a scalar or one value per feature, unit or group.
        Its attributes ``axis`` and ``labels`` say what the values of a vector are.
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
    stop
        Stop drawing once the decision is certain, see :class:`SequentialStop`; default: use
        all draws.
    calibrate_refits
        Number B of refits to data simulated from the fit, 0 for none. They repair what a
        point estimate of the globals, or too narrow a variational posterior, does to the p-value:
        ``p_refit`` and ``p_refit_t`` of the result compare the excess of the data
        with those of the refits.
    refits
        How to simulate and refit, for instance :func:`probinterp.inference.model_refits`.
    n_jobs
        Refits at a time, as in ``joblib.Parallel``; ``joblib.parallel_config`` chooses where.

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
    plan = Plan("pop-pc", kind, reference, n_reference, seed, n_obs, stop)
    named = {name_of(discrepancy): discrepancy}
    calibration = Calibration(calibrate_refits, refits, n_jobs)
    results, objections = evaluate(draws, x_new, named, plan, calibration)
    _warn(objections)
    return next(iter(results.values()))


def pop_pc_suite(
    draws: Iterable[PredictiveDraw],
    x_new: Tensor,
    suite: Mapping[str, Discrepancy],
    *,
    kind: Kind = "plugin",
    reference: ReferenceArgument = None,
    n_reference: int = 32,
    seed: int = 0,
    n_obs: int | None = None,
    stop: SequentialStop | None = None,
    calibrate_refits: int = 0,
    refits: Refits | None = None,
    n_jobs: int | None = None,
) -> dict[str, PopPCResult]:
    """Several population predictive checks on the same replicates, in one pass over the draws.

    Every result is what :func:`pop_pc` gives for that discrepancy alone, at the price of
    one set of replicates and, with ``calibrate_refits``, one set of refits.

    Parameters
    ----------
    draws, x_new
        As for :func:`pop_pc`.
    suite
        Discrepancies by name; results carry these names.
    kind, reference, n_reference, seed, n_obs, stop, calibrate_refits, refits, n_jobs
        As for :func:`pop_pc`. With ``stop``, drawing ends when all decisions of all
        discrepancies are certain.

    Returns
    -------
    dict
        One :class:`PopPCResult` a discrepancy, in the order of ``suite``.

    Raises
    ------
    TypeError, ValueError
        As :func:`pop_pc`, and if the suite is empty.

    Warns
    -----
    CriticismWarning
        As :func:`pop_pc`, each once.
    """
    if not isinstance(suite, Mapping) or not suite:
        raise ValueError(f"suite must map at least one name to a discrepancy, got {suite!r}.")
    plan = Plan("pop-pc", kind, reference, n_reference, seed, n_obs, stop)
    calibration = Calibration(calibrate_refits, refits, n_jobs)
    results, objections = evaluate(draws, x_new, suite, plan, calibration)
    _warn(objections)
    return results


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
    plan = Plan("ppc", kind, reference, n_reference, seed, n_obs, None)
    named = {name_of(discrepancy): discrepancy}
    return next(iter(evaluate(draws, x_obs, named, plan, Calibration())[0].values()))


def _warn(objections: list[Objection]) -> None:
    for category, message in objections:
        warnings.warn(message, category, stacklevel=3)
