"""Where a discrepancy is evaluated: at one draw, at a mixture of draws, or at every draw."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from probinterp.criticism.draws import PredictiveDraw, StackedReplicates
from probinterp.criticism.predictive_mixture import PredictiveMixture
from probinterp.criticism.result import Kind

ReferenceArgument = PredictiveDraw | Sequence[PredictiveDraw] | None


class Reference(NamedTuple):
    """The draw at which d is evaluated, and the draws that replicate."""

    draw: PredictiveDraw | None  # None: d is evaluated at each replicating draw
    replicating: Iterator[PredictiveDraw]
    source: str  # where the draw came from, in words
    also_replicates: bool = False
    stack: StackedReplicates | None = None  # the draws again, where replicates can be had stacked
    first: int = 0  # index of the first draw that replicates


def find_reference(
    draws: Iterable[PredictiveDraw], kind: Kind, argument: ReferenceArgument, n_reference: int
) -> Reference:
    """Take the reference from the argument, else from ``draws``, else set draws aside.

    Parameters
    ----------
    draws
        Posterior draws, perhaps with an attribute ``reference`` or ``reference_draws``.
    kind
        Kind of the check.
    argument
        What the caller passed as reference.
    n_reference
        Number of draws that a predictive check sets aside.

    Raises
    ------
    TypeError
        If the reference is not what the kind needs.
    ValueError
        If there are not enough draws, or a realised check is given a reference.
    """
    if kind == "realised":
        if argument is not None:
            raise ValueError("kind='realised' evaluates d at every draw; it takes no reference.")
        return Reference(None, iter(draws), "each draw")
    if kind == "plugin":
        return _plugin_reference(draws, argument)
    return _predictive_reference(draws, argument, n_reference)


def require_draw(draw: object, name: str) -> None:
    """Raise TypeError unless ``draw`` has the methods of a PredictiveDraw."""
    if not isinstance(draw, PredictiveDraw):
        raise TypeError(
            "draws must have the methods replicate() and likelihood(x); "
            f"{name} is a {type(draw).__name__}."
        )


def _plugin_reference(draws: Iterable[PredictiveDraw], argument: ReferenceArgument) -> Reference:
    source = "argument"
    if argument is None:
        argument, source = getattr(draws, "reference", None), "draws.reference"
    if argument is not None:
        if not isinstance(argument, PredictiveDraw):
            raise TypeError(
                "kind='plugin' needs one reference draw with replicate() and likelihood(x), "
                f"got a {type(argument).__name__}."
            )
        return Reference(argument, iter(draws), source, stack=_stack(draws))
    iterator = iter(draws)
    beginning = list(itertools.islice(iterator, 2))
    if not beginning:
        raise ValueError("draws is empty: there is nothing to replicate from.")
    first = beginning[0]
    require_draw(first, "the first")
    if len(beginning) == 1:
        return Reference(first, iter(beginning), "the only draw, which also replicates", True)
    rest = itertools.chain(beginning[1:], iterator)
    return Reference(first, rest, "the first draw, set aside", stack=_stack(draws), first=1)


def _stack(draws: object) -> StackedReplicates | None:
    return draws if isinstance(draws, StackedReplicates) else None


def _predictive_reference(
    draws: Iterable[PredictiveDraw], argument: ReferenceArgument, n_reference: int
) -> Reference:
    iterator, source, first = iter(draws), "argument", 0
    if argument is None:
        argument, source = getattr(draws, "reference_draws", None), "draws.reference_draws"
    if argument is None:
        first = n_reference
        argument = list(itertools.islice(iterator, n_reference))
        source = f"the first {n_reference} draws, set aside"
        if len(argument) < n_reference:
            raise ValueError(
                f"kind='predictive' sets {n_reference} draws aside as reference (n_reference), "
                f"got {len(argument)} draws in all."
            )
    if not isinstance(argument, Sequence):
        raise TypeError(
            "kind='predictive' needs a sequence of reference draws, "
            f"got a {type(argument).__name__}."
        )
    for index, draw in enumerate(argument):
        require_draw(draw, f"reference {index}")
    replicating = _apart(iterator, argument)
    # a stack cannot be told apart from references that were passed by hand
    stack = _stack(draws) if first else None
    return Reference(PredictiveMixture(argument), replicating, source, stack=stack, first=first)


def _apart(
    draws: Iterator[PredictiveDraw], reference: Sequence[PredictiveDraw]
) -> Iterator[PredictiveDraw]:
    """Pass the draws on, but refuse one that belongs to the reference."""
    known = {id(draw) for draw in reference}
    for index, draw in enumerate(draws):
        if id(draw) in known:
            raise ValueError(
                f"replicating draw {index} is also a reference draw; a predictive density made "
                "of the draws that replicate is not calibrated, keep the two sets apart."
            )
        yield draw
