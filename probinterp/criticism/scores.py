"""Held-out scores with one value per unit: log score, CRPS, interval coverage."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from probinterp.criticism.blocks import require_like
from probinterp.criticism.draws import PredictiveDraw, self_describing
from probinterp.criticism.marginals import marginals
from probinterp.criticism.ranked_probability import crps_of, fair_crps
from probinterp.criticism.reference import require_draw
from probinterp.criticism.stream import seeded
from probinterp.criticism.validation import validate_data

STORED_VALUES = 2**26  # numbers of replicates that are held at a time, half a GiB in float64


class Score(NamedTuple):
    """A proper score of held-out data, one value per unit.

    Parameters
    ----------
    name
        Name of the score.
    values
        Score of each unit, float64 on the CPU, shape (N,).
    larger_is_better
        Direction of the score.
    mc_error
        Monte-Carlo standard error of each value from the number of draws, (N,).
    n_draws
        Number of draws, S.
    """

    name: str
    values: Tensor
    larger_is_better: bool
    mc_error: Tensor
    n_draws: int

    @property
    def mean(self) -> float:
        """Average over units."""
        return self.values.mean().item()

    @property
    def standard_error(self) -> float:
        """Standard error of the average over units; assumes independent units."""
        return self.values.std().item() / math.sqrt(len(self.values))


class Coverage(NamedTuple):
    """How often central predictive intervals contain held-out values.

    Parameters
    ----------
    levels
        Nominal probabilities, float64, (L,).
    pit
        Randomised probability integral transform of every entry, float64, (N, G); uniform under a
        correct model.
    n_draws
        Number of draws, S.
    """

    levels: Tensor
    pit: Tensor
    n_draws: int

    @property
    def values(self) -> Tensor:
        """Share of each unit's entries inside the intervals, shape (L, N)."""
        return self._inside().double().mean(2)

    @property
    def observed(self) -> Tensor:
        """Share of all entries inside the intervals, shape (L,)."""
        return self.values.mean(1)

    @property
    def binomial_error(self) -> Tensor:
        r"""Standard error :math:`\sqrt{l (1 - l) / NG}` of a correct model, shape (L,).

        For independent entries; entries of one unit seldom are, see ``standard_error``.
        """
        return (self.levels * (1 - self.levels) / self.pit.numel()).sqrt()

    @property
    def standard_error(self) -> Tensor:
        """Standard error from the spread over units, entries of a unit dependent, shape (L,)."""
        return self.values.std(1) / math.sqrt(len(self.pit))

    def _inside(self) -> Tensor:
        # the interval of probability l holds the values whose PIT is within l / 2 of the median
        return (self.pit - 0.5).abs() <= self.levels.reshape(-1, 1, 1) / 2


def log_score(draws: Iterable[PredictiveDraw], x: Tensor, *, seed: int = 0) -> Score:
    r"""Held-out log predictive density of each unit; large is good.

    .. math:: \log \hat p(x_i) = \log \frac1S \sum_s p(x_i \mid \theta_s)

    Parameters
    ----------
    draws
        Posterior draws whose likelihood integrates local latents out, or has them inferred from
        an observed part of the units or from covariates (``local="observed"``,
        ``"covariates"``).
    x
        Held-out data, shape (N, G).
    seed
        Seed of torch's generators, for likelihoods that are computed by sampling.

    Returns
    -------
    Score
        In nats. Its Monte-Carlo error is that of the average density, divided by it; the
        estimate is too low by about half its square.

    Raises
    ------
    TypeError
        If ``x`` is not floating point or a draw lacks a method.
    ValueError
        If ``x`` is not finite data (N, G), there are no draws, a density is NaN or not one per
        unit, or the likelihood has local latents at values inferred from ``x`` itself, which is
        not a predictive density.

    References
    ----------
    Strictly proper scoring rules, prediction, and estimation (Gneiting and Raftery, 2007).
    """
    validate_data(x)
    draws = self_describing(draws)
    _require_density(draws)
    total = torch.full((len(x),), -math.inf, dtype=torch.float64, device=x.device)
    squares, n_draws = total.clone(), 0
    with torch.no_grad(), seeded(seed, x.device):
        for draw in _checked(draws):
            n_draws += 1
            density = draw.likelihood(x).log_prob(x).double()
            if density.shape != total.shape:
                raise ValueError(
                    f"the likelihood must have one log density per unit, shape ({len(x)},), got "
                    f"{tuple(density.shape)}; make the features its event (Independent(law, 1))."
                )
            total = torch.logaddexp(total, density)
            squares = torch.logaddexp(squares, 2 * density)
    values = (total - math.log(n_draws)).cpu()
    _require_numbers(values, "log density")
    return Score("log score", values, True, _relative_error(total, squares, n_draws), n_draws)


def crps(
    draws: Iterable[PredictiveDraw], x: Tensor, *, seed: int = 0, stored: int = STORED_VALUES
) -> Score:
    r"""Continuous ranked probability score of each unit, averaged over features; small is good.

    .. math:: \frac1G \sum_j \Big( E|X_{ij} - x_{ij}| - \tfrac12 E|X_{ij} - X'_{ij}| \Big)

    From several draws, estimated without bias from their replicates, whatever the model. From a
    single draw, whose likelihood is then the predictive distribution, exact: normal, Poisson and
    negative binomial entries have a closed form.

    Parameters
    ----------
    draws
        Posterior draws that replicate ``x``; not with local latents inferred from ``x`` itself.
    x
        Held-out data, shape (N, G).
    seed
        Seed of torch's generators while the draws replicate.
    stored
        Numbers of replicates held at a time. Where S N G is more, the draws replicate anew for
        each block of features.

    Returns
    -------
    Score
        In the units of ``x``.

    Raises
    ------
    TypeError
        If ``x`` is not floating point, a draw lacks a method, or the likelihood of a single draw
        has no marginals.
    ValueError
        If ``x`` is not finite data (N, G); if there are no draws, or a single one without a closed
        form; if a replicate is unlike ``x`` or NaN; if local latents are inferred from ``x``.

    References
    ----------
    Strictly proper scoring rules, prediction, and estimation (Gneiting and Raftery, 2007),
    equation 21; Fair scores for ensemble forecasts (Ferro, 2014).
    """
    validate_data(x)
    draws = self_describing(draws)
    _require_predictive(draws)
    several = draws if isinstance(draws, Sized) else list(draws)
    n_draws, n_features = len(several), x.shape[1]
    if n_draws == 1:
        _require_density(draws)
        return _exact_crps(next(_checked(several)), x)
    width = max(1, stored // max(1, n_draws * len(x)))
    total, influence = x.new_zeros(len(x)).double(), torch.zeros((), device=x.device)
    with torch.no_grad(), seeded(seed, x.device):
        for start in range(0, n_features, width):
            block = x[:, start : start + width].double()
            samples = block.new_empty(n_draws, *block.shape, dtype=x.dtype)
            for kept, draw in zip(samples, _checked(several), strict=True):
                kept.copy_(_replicate(draw, x)[:, start : start + width])
            for k in range(block.shape[1]):
                estimate = fair_crps(samples[:, :, k].double(), block[:, k])
                total, influence = total + estimate.value, influence + estimate.influence
    error = influence.std(0) / (n_features * math.sqrt(n_draws))
    return Score("CRPS", (total / n_features).cpu(), False, error.cpu(), n_draws)


def coverage(
    draws: Iterable[PredictiveDraw],
    x: Tensor,
    *,
    levels: Sequence[float] = (0.5, 0.8, 0.9, 0.95),
    seed: int = 0,
) -> Coverage:
    r"""Share of held-out entries inside central predictive intervals.

    .. math:: u_{ij} = \frac{\#\{X_{ij} < x_{ij}\} + U_{ij} (\#\{X_{ij} = x_{ij}\} + 1)}{S + 1},
        \qquad x_{ij} \text{ is inside } \iff |u_{ij} - \tfrac12| \le l / 2

    The randomised ranks make the coverage of a correct model exact, for counts and for any
    number of draws. Replicates are counted, not stored.

    Parameters
    ----------
    draws
        Posterior draws that replicate ``x``; not with local latents inferred from ``x`` itself.
    x
        Held-out data, shape (N, G).
    levels
        Probabilities of the intervals, in (0, 1).
    seed
        Seed of the ranks and of torch's generators while the draws replicate.

    Returns
    -------
    Coverage
        Observed shares with their errors, and the PIT values.

    Raises
    ------
    TypeError
        If ``x`` is not floating point or a draw lacks a method.
    ValueError
        If a level is out of range, ``x`` is not finite data (N, G), there are no draws, a replicate
        is unlike ``x`` or NaN, or the replicates share latents inferred from ``x``.

    References
    ----------
    Predictive model assessment for count data (Czado, Gneiting and Held, 2009), section 2.
    """
    if not all(0 < level < 1 for level in levels):
        raise ValueError(f"levels must lie in (0, 1), got {tuple(levels)}.")
    validate_data(x)
    draws = self_describing(draws)
    _require_predictive(draws)
    tie_seed, draw_seed = np.random.SeedSequence(seed).generate_state(2, np.uint64).tolist()
    below, n_draws = torch.zeros_like(x, dtype=torch.int32), 0  # half floats count to 2048 only
    tied = below
    with torch.no_grad(), seeded(draw_seed, x.device):
        for draw in _checked(draws):
            n_draws += 1
            x_rep = _replicate(draw, x)
            below, tied = below + (x_rep < x), tied + (x_rep == x)
    generator = torch.Generator().manual_seed(tie_seed)
    uniform = torch.rand(x.shape, generator=generator, dtype=torch.float64)
    pit = (below.cpu() + uniform * (tied.cpu() + 1)) / (n_draws + 1)
    return Coverage(torch.tensor(levels, dtype=torch.float64), pit, n_draws)


def _exact_crps(draw: PredictiveDraw, x: Tensor) -> Score:
    with torch.no_grad():
        law = marginals(draw.likelihood(x))
        found = crps_of(law, x)
    if found is None:
        raise ValueError(
            f"the CRPS of a single draw is known for normal, Poisson and negative binomial "
            f"entries, not for {type(law).__name__}; pass at least two draws."
        )
    values = found.double().mean(1).cpu()
    _require_numbers(values, "CRPS")
    return Score("CRPS", values, False, torch.zeros_like(values), 1)


def _replicate(draw: PredictiveDraw, x: Tensor) -> Tensor:
    x_rep = draw.replicate()
    require_like(x_rep, tuple(x.shape), x, "replicate()")
    _require_numbers(x_rep, "replicate")
    return x_rep


def _checked(draws: Iterable[PredictiveDraw]) -> Iterator[PredictiveDraw]:
    index = -1
    for index, draw in enumerate(draws):
        require_draw(draw, f"draw {index}")
        yield draw
    if index < 0:
        raise ValueError("draws is empty: there is nothing to score with.")


def _relative_error(total: Tensor, squares: Tensor, n_draws: int) -> Tensor:
    # E w^2 / (E w)^2 - 1 over the draws, from log sums that cannot overflow
    ratio = (squares - 2 * total + math.log(n_draws)).exp() - 1
    return (ratio.clamp(min=0) / max(n_draws - 1, 1)).sqrt().cpu()


def _require_density(draws: object) -> None:
    local, scoring = getattr(draws, "local", None), getattr(draws, "scoring", None)
    if scoring == "inferred" and local not in ("observed", "covariates"):
        raise ValueError(
            "the likelihood of these draws has local latents inferred from the data it scores, "
            "which is no predictive density; use scoring='marginal', or local='observed' or "
            "'covariates'."
        )


def _require_predictive(draws: object) -> None:
    if getattr(draws, "local", None) == "posterior":
        raise ValueError(
            "these draws replicate with local latents inferred from the held-out data themselves "
            "(local='posterior'), which is no prediction; use local='prior', 'observed' or "
            "'covariates'."
        )


def _require_numbers(values: Tensor, what: str) -> None:
    if values.isnan().any():
        raise ValueError(f"a {what} is NaN.")
