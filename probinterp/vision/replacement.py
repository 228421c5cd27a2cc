"""A proxy in the place of MLPs of a vision tower, for as long as a context lasts."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Literal

from torch import nn

from probinterp.vision.cascade import (
    Cascade,
    Codes,
    Placement,
    Proxy,
    Tokens,
    installed,
    require_proxy,
)
from probinterp.vision.towers import Tower, resolve

Scope = Literal["all", "final"]


@contextmanager
def replace_mlps(
    backbone: nn.Module | Tower,
    clt: Proxy,
    *,
    layers: Sequence[int] | None = None,
    tokens: Tokens = "all",
    keep: Collection[int] | None = None,
    drop: Collection[int] | None = None,
    scope: Scope = "all",
    codes: Codes = "mean",
    seed: int = 0,
    same_weights: bool = True,
) -> Iterator[Tower]:
    r"""Let a transcoder write what MLPs would have written.

    Inside the context every forward pass is a cascade: the codes :math:`z^i` of all layers up to
    the last replaced one are taken from the stream as it is in this pass, which below the first
    replaced layer is that of the network itself. At a replaced layer j the tokens chosen get

    .. math:: \hat y^j = b^j + \sum_{i \le j,\, i \in K} z^i W^{i \to j}

    and the others what the MLP makes of the current stream. LayerScale and the residual sum come
    after that and stay. Afterwards the network is what it was, also after an error: weights, names
    and hooks are never touched.

    Parameters
    ----------
    backbone
        CLIP network or vision tower.
    clt
        Transcoder for this very tower, or another :class:`Proxy`.
    layers
        Layers to replace, ascending, with or without gaps; default: all. A gap keeps its MLP but
        its codes, taken from the current stream, still write to the layers above.
    tokens
        ``"cls"``, ``"patch"`` or ``"all"`` for both; registers are never replaced.
    keep
        Sources K that write, default: all. Bias and skip map always stay.
    drop
        Sources that do not write; instead of ``keep``.
    scope
        Where ``keep`` and ``drop`` hold: in ``"all"`` replaced layers, or in the ``"final"`` one
        of them alone.
    codes
        ``"mean"``: posterior means; ``"hard"``: the sparse code that stands for the posterior;
        ``"sample"``: a draw, another one in every pass.
    seed
        Seed of the draws.
    same_weights
        Whether a backbone of other weights or precision than the one recorded with the
        transcoder is refused; other hooks, shapes or preprocessing always are.

    Yields
    ------
    Tower
        The tower with the proxy in it.

    Raises
    ------
    TowerMismatchError
        If the transcoder was made for another tower.
    RuntimeError
        If MLPs of this tower are replaced already, or if the tower runs in another thread than
        the one that entered the context.
    ValueError
        If layers, tokens, sources or an option do not exist.

    Notes
    -----
    What the pooling leaves out cannot matter in the last layer: the patches, where the class token
    is the embedding; see :func:`reaches_embedding`.

    References
    ----------
    Can Cross-Layer Transcoders Replace Vision Transformer Activations? (Chatzoudis et al., 2026);
    cascade, windows and token types. What ``keep`` and ``drop`` mean in the layers below the last
    is not said there, hence ``scope``.
    """
    tower = resolve(backbone)
    cascade = cascade_of(
        tower,
        clt,
        layers=layers,
        tokens=tokens,
        kept=kept_sources(tower.n_layers, keep, drop),
        scope=scope,
        codes=codes,
        seed=seed,
    )
    require_proxy(tower, clt, same_weights=same_weights)
    with cascading(cascade):
        yield tower


def cascade_of(
    tower: Tower,
    clt: Proxy,
    *,
    layers: Sequence[int] | None = None,
    tokens: Tokens = "all",
    kept: Collection[int] | None = None,
    scope: Scope = "all",
    codes: Codes = "mean",
    seed: int = 0,
) -> Cascade:
    """What :func:`replace_mlps` installs; whether the proxy is that of the tower is not checked.

    Parameters
    ----------
    tower, clt, layers, tokens, scope, codes, seed
        As there.
    kept
        Sources that write, default: all.
    """
    chosen = tower.layer_indices(layers)
    everything = frozenset(range(tower.n_layers))
    sources = sources_by_target(clt, chosen, everything if kept is None else kept, scope)
    return Cascade(tower, clt, Placement(chosen, tokens, sources, codes, seed))


@contextmanager
def cascading(cascade: Cascade) -> Iterator[None]:
    """Install a cascade in its tower for as long as the context lasts."""
    placement = cascade.placement
    forwards = {j: partial(cascade.output, j) for j in placement.layers}
    watched = sorted(placement.encoded.difference(placement.layers))
    with installed(cascade.tower, forwards, {i: partial(cascade.encode, i) for i in watched}):
        yield


def reaches_embedding(
    backbone: nn.Module | Tower, layers: Sequence[int] | None, tokens: Tokens
) -> bool:
    """Whether replaced outputs can change the image embedding at all.

    Where the embedding is made of the class token alone, patches of the last layer cannot, and
    where it is a mean or maximum over patches the class token cannot: a comparison of accuracies is
    then exactly zero and says nothing of the proxy.
    """
    tower = resolve(backbone)
    only_last = tower.layer_indices(layers) == (tower.n_layers - 1,)
    return not (only_last and tokens == _unseen(tower))


def _unseen(tower: Tower) -> Tokens | None:
    """Tokens that the pooling after the last layer leaves out."""
    if tower.pooling == "cls":
        return "patch"
    trunk = getattr(tower.visual, "trunk", tower.visual)
    prefix = bool(getattr(trunk, "pool_include_prefix", False))
    return "cls" if tower.pooling in ("avg", "max", "avgmax") and not prefix else None


def kept_sources(
    n_layers: int, keep: Collection[int] | None, drop: Collection[int] | None
) -> frozenset[int]:
    """Sources that write, from those to keep or those to drop.

    Raises
    ------
    ValueError
        If both are given or a source does not exist.
    """
    if keep is not None and drop is not None:
        raise ValueError(f"give keep or drop, not both: got {list(keep)} and {list(drop)}.")
    everything = frozenset(range(n_layers))
    named = frozenset(drop or ()) if keep is None else frozenset(keep)
    if not named <= everything:
        raise ValueError(
            f"sources must lie in 0..{n_layers - 1}, got {sorted(named - everything)}."
        )
    return everything - named if keep is None else named


def sources_by_target(
    clt: Proxy, layers: Sequence[int], kept: Collection[int], scope: Scope
) -> dict[int, frozenset[int]]:
    """Sources that write to each replaced layer."""
    if scope not in ("all", "final"):
        raise ValueError(f'scope must be "all" or "final", got {scope!r}.')
    cross = getattr(clt, "cross_layer", True)
    sources = {}
    for target in layers:
        writing = frozenset(range(target + 1) if cross else (target,))
        restricted = scope == "all" or target == layers[-1]
        sources[target] = writing.intersection(kept) if restricted else writing
    return sources
