"""Over-representation of gene sets among the genes of a factor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
from scipy import stats

from probinterp.genomics.factors import top_genes
from probinterp.inference.posterior import Factors

COLUMNS = ["set", "n_overlap", "n_set", "n_genes", "n_background", "ratio", "p_value", "p_adjusted"]


def read_gmt(path: str | Path) -> dict[str, frozenset[str]]:
    """Gene sets of a GMT file: name, description and genes, separated by tabs.

    Raises
    ------
    ValueError
        If a line has no gene, or a name stands twice; the text gives the line number.
    """
    sets: dict[str, frozenset[str]] = {}
    for number, line in enumerate(Path(path).read_text().splitlines(), 1):
        if not line.strip():
            continue
        name, *rest = line.split("\t")
        genes = frozenset(gene.strip() for gene in rest[1:] if gene.strip())
        if not name.strip() or not genes:
            raise ValueError(
                f"{path}, line {number}: expected name, description and genes separated by "
                f"tabs, got {line[:60]!r}."
            )
        if name in sets:
            raise ValueError(f"{path}, line {number}: gene set {name!r} stands twice.")
        sets[name] = genes
    if not sets:
        raise ValueError(f"{path} holds no gene set.")
    return sets


def enrichment(
    genes: Iterable[str],
    gene_sets: Mapping[str, Iterable[str]],
    background: Iterable[str],
    *,
    min_size: int = 5,
) -> pd.DataFrame:
    r"""Hypergeometric test of every gene set, with Benjamini-Hochberg adjusted p values.

    .. math:: p = \Pr(X \ge x), \quad X \sim \mathrm{Hypergeometric}(B, s, n)

    for an overlap of x between n genes and a set of which s genes are in the background of B.

    Parameters
    ----------
    genes
        Genes of interest; all must be in the background.
    gene_sets
        Genes of each set; genes outside the background are ignored.
    background
        All genes that could have been found: those that were fitted, not the genome.
    min_size
        Sets with fewer genes in the background are not tested.

    Returns
    -------
    DataFrame
        One row a tested set, smallest p first: overlap, sizes, ratio of the overlap to its
        expectation, p values, and the overlapping genes.
    """
    universe, chosen = frozenset(background), frozenset(genes)
    if not chosen or not chosen <= universe:
        outside = sorted(chosen - universe)[:3]
        raise ValueError(
            f"genes must be a non-empty part of the background, got {len(chosen)} genes"
            + (f", of which {outside} are not in it." if outside else ".")
        )
    rows = []
    for name, members in gene_sets.items():
        inside = universe.intersection(members)
        if len(inside) < min_size:
            continue
        overlap = sorted(chosen & inside)
        p = stats.hypergeom.sf(len(overlap) - 1, len(universe), len(inside), len(chosen))
        ratio = len(overlap) * len(universe) / (len(inside) * len(chosen))
        sizes = (len(overlap), len(inside), len(chosen), len(universe))
        rows.append((name, *sizes, ratio, float(p), float("nan"), ", ".join(overlap)))
    table = pd.DataFrame(rows, columns=[*COLUMNS, "genes"])
    if rows:
        table["p_adjusted"] = stats.false_discovery_control(table["p_value"])
    return table.sort_values("p_value", kind="stable", ignore_index=True)


def enrich_factors(
    factors: Factors,
    var_names: Sequence[str],
    gene_sets: Mapping[str, Iterable[str]],
    *,
    n_genes: int = 50,
    min_size: int = 5,
) -> pd.DataFrame:
    """:func:`enrichment` of every factor's top genes against all fitted genes.

    The p values are adjusted over all sets and factors together.
    """
    tops = top_genes(factors, var_names, n_genes).groupby("factor", sort=False)["gene"]
    tables = [
        enrichment(genes, gene_sets, var_names, min_size=min_size).assign(factor=name)
        for name, genes in tops
    ]
    if not tables:
        raise ValueError("no factor has a gene in its support.")
    table = pd.concat(tables, ignore_index=True)
    if len(table):
        table["p_adjusted"] = stats.false_discovery_control(table["p_value"])
    return table[["factor", *COLUMNS, "genes"]]
