"""Over-representation of gene sets in a list of genes."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control, hypergeom

from probinterp.genomics.validation import listing

GeneSets = Mapping[str, Collection[str]]


def read_gmt(path: str | Path) -> dict[str, frozenset[str]]:
    """Read gene sets from a GMT file: name, description and genes, separated by tabs.

    Parameters
    ----------
    path
        File in UTF-8, also compressed with gzip if its name ends in ``.gz``. Blank lines and
        empty fields after the description are passed over.

    Returns
    -------
    dict
        Genes of each set by its name, in file order.

    Raises
    ------
    ValueError
        If a line has no name or no gene, a name comes twice, or the file is not text or
        holds no set; the message has the number of the line.
    """
    path = Path(path)
    sets: dict[str, frozenset[str]] = {}
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, mode="rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    name, genes = _gmt_line(line, f"{path}, line {number}")
                    if name in sets:
                        raise ValueError(f"{path}, line {number}: set {name!r} was read before.")
                    sets[name] = genes
    except (UnicodeDecodeError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is not a text file in UTF-8: {error}.") from error
    if not sets:
        raise ValueError(f"{path} holds no gene set.")
    return sets


def enrichment(
    genes: Collection[str],
    gene_sets: GeneSets,
    background: Collection[str],
    *,
    min_size: int = 5,
    symbols: Mapping[str, str] | pd.Series | None = None,
) -> pd.DataFrame:
    r"""Test whether gene sets are over-represented among ``genes``.

    With n genes drawn out of a background of M, k of them in a set that has K genes in the
    background, the one-sided hypergeometric p-value is

    .. math:: p = P(X \ge k), \quad X \sim \mathrm{Hypergeometric}(M, K, n),

    the same as Fisher's exact test with the alternative "greater".

    Parameters
    ----------
    genes
        Genes of interest without repetition, all of them in the background.
    gene_sets
        Genes of each set; those outside the background do not count.
    background
        All genes that could have been in ``genes``: usually the genes that the model saw, not
        the genome.
    min_size
        Sets with fewer genes in the background are not tested.
    symbols
        Symbol of each gene, where ``genes`` and ``background`` are ids such as Ensembl's and
        the sets hold symbols: ``adata.var["symbol"]``. Genes without a symbol, and with one that
        several genes of the background share, are left out of both lists.

    Returns
    -------
    pandas.DataFrame
        One row per tested set, by rising p-value: gene_set, size (genes in the background),
        overlap, expected (mean of X), fold (overlap / expected), p_value, q_value
        (Benjamini-Hochberg over the tested sets) and genes (the overlap, a sorted tuple). With
        ``symbols``, ``attrs["dropped"]`` lists the genes left out: without_symbol and ambiguous.

    Raises
    ------
    TypeError
        If ``genes`` or ``background`` is one string.
    ValueError
        If genes are repeated or outside the background, or no set is left to test.
    """
    universe = _unique(background, "background", repeats=True)
    drawn = _unique(genes, "genes", repeats=False)
    if outside := sorted(drawn - universe):
        raise ValueError(f"genes outside the background: {listing(outside)}.")
    if min_size < 1:
        raise ValueError(f"min_size must be at least 1, got {min_size}.")
    dropped = None
    if symbols is not None:
        named, dropped = _by_symbol(universe, symbols)
        universe = frozenset(named.values())
        drawn = _unique([named[gene] for gene in drawn if gene in named], "genes", repeats=False)
    inside = {name: universe.intersection(members) for name, members in gene_sets.items()}
    tested = {name: members for name, members in inside.items() if len(members) >= min_size}
    if not tested:
        raise ValueError(
            f"none of {len(inside)} gene sets has {min_size} genes in the background "
            f"(the largest has {max(map(len, inside.values()), default=0)}); the background "
            f"has names such as {listing(sorted(universe), 3)}: are they of the same kind?"
        )
    found = [tuple(sorted(members & drawn)) for members in tested.values()]
    size = np.array([len(members) for members in tested.values()])
    overlap = np.array([len(common) for common in found])
    expected = size * len(drawn) / len(universe)
    p_value = np.clip(hypergeom.sf(overlap - 1, len(universe), size, len(drawn)), 0, 1)
    result = pd.DataFrame(
        {
            "gene_set": np.array(list(tested), dtype=object),
            "size": size,
            "overlap": overlap,
            "expected": expected,
            "fold": overlap / expected,
            "p_value": p_value,
            "q_value": false_discovery_control(p_value),
            "genes": pd.Series(found, dtype=object),
        }
    )
    result = result.sort_values("p_value", kind="stable", ignore_index=True)
    if dropped is not None:
        result.attrs["dropped"] = dropped
    return result


def enrich_factors(
    top: pd.DataFrame,
    gene_sets: GeneSets,
    background: Collection[str],
    *,
    min_size: int = 5,
    symbols: Mapping[str, str] | pd.Series | None = None,
) -> pd.DataFrame:
    """Test gene sets among the top genes of every factor.

    Parameters
    ----------
    top
        Table with the columns factor and gene, such as :func:`top_genes` returns.
    gene_sets, background, min_size, symbols
        As in :func:`enrichment`.

    Returns
    -------
    pandas.DataFrame
        The rows of :func:`enrichment` with the factor in front; q-values are
        Benjamini-Hochberg over all factors and sets together. With ``symbols``, factors of
        which no gene has a usable symbol are left out; ``attrs["dropped"]`` lists them as factors.
    """
    if missing := {"factor", "gene"} - set(top.columns):
        raise KeyError(f"top lacks the columns {sorted(missing)}; got {list(top.columns)}.")
    if top.empty:
        raise ValueError("top holds no gene: every loading is zero.")
    usable = None if symbols is None else _by_symbol(_unique(background, "background"), symbols)
    tables, nameless = [], []
    for factor, rows in top.groupby("factor", sort=False, observed=True):
        if usable and not rows["gene"].isin(list(usable.named)).any():
            nameless.append(str(factor))
            continue
        table = enrichment(
            list(rows["gene"]), gene_sets, background, min_size=min_size, symbols=symbols
        )
        table.insert(0, "factor", factor)
        tables.append(table)
    if not tables:
        raise ValueError("no gene of top has a symbol that no other gene has.")
    result = pd.concat(tables, ignore_index=True)
    result["q_value"] = false_discovery_control(result["p_value"].to_numpy())
    if usable:
        result.attrs["dropped"] = {**usable.dropped, "factors": tuple(nameless)}
    return result


class _Symbols(NamedTuple):
    named: dict[str, str]
    dropped: dict[str, tuple[str, ...]]


def _by_symbol(universe: frozenset[str], symbols: Mapping[str, str] | pd.Series) -> _Symbols:
    """Symbols of the genes that have one of their own, and the genes that have not."""
    if isinstance(symbols, pd.Series) and not symbols.index.is_unique:
        raise ValueError("symbols has genes that occur more than once.")
    given = {gene: symbols.get(gene) for gene in sorted(universe)}
    known = {
        gene: symbol.strip()
        for gene, symbol in given.items()
        if isinstance(symbol, str) and symbol.strip()
    }
    if not known:
        raise ValueError(
            f"symbols names none of the genes of the background, such as "
            f"{listing(sorted(universe), 3)}."
        )
    holders = Counter(known.values())
    named = {gene: symbol for gene, symbol in known.items() if holders[symbol] == 1}
    return _Symbols(
        named,
        {
            "without_symbol": tuple(gene for gene in given if gene not in known),
            "ambiguous": tuple(gene for gene in known if gene not in named),
        },
    )


def _gmt_line(line: str, where: str) -> tuple[str, frozenset[str]]:
    fields = [field.strip() for field in line.rstrip("\r\n").split("\t")]
    genes = frozenset(filter(None, fields[2:]))
    if not fields[0] or not genes:
        raise ValueError(
            f"{where}: expected name, description and genes separated by tabs, "
            f"got {len(fields)} fields: {line.strip()[:60]!r}."
        )
    return fields[0], genes


def _unique(genes: Collection[str], name: str, *, repeats: bool = True) -> frozenset[str]:
    if isinstance(genes, str):
        raise TypeError(f"{name} must be a collection of names, got one string {genes!r}.")
    names = list(genes)
    if not names:
        raise ValueError(f"{name} is empty.")
    if wrong := [gene for gene in names if not isinstance(gene, str)]:
        raise TypeError(f"{name} must hold strings, got {type(wrong[0]).__name__} {wrong[0]!r}.")
    unique = frozenset(names)
    if not repeats and len(unique) < len(names):
        twice = sorted(gene for gene in unique if names.count(gene) > 1)
        raise ValueError(f"{name} are repeated: {listing(twice)}.")
    return unique
