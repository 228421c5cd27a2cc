import gzip

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import false_discovery_control, fisher_exact

from probinterp.genomics import enrich_factors, enrichment, read_gmt

BACKGROUND = [f"g{i}" for i in range(200)]
SETS = {
    "first": [f"g{i}" for i in range(20)],
    "middle": [f"g{i}" for i in range(90, 130)],
    "elsewhere": ["x1", "x2", "x3", "g5", "g6"],
    "all": BACKGROUND,
}


def fisher(k, size, n, total):
    table = [[k, size - k], [n - k, total - size - n + k]]
    return fisher_exact(table, alternative="greater").pvalue


def test_p_values_are_those_of_fishers_exact_test():
    genes = [f"g{i}" for i in (*range(8), *range(100, 105), 150, 170)]
    table = enrichment(genes, SETS, BACKGROUND, min_size=3).set_index("gene_set")
    assert list(table.index) == ["first", "middle", "all"]  # by p; "elsewhere" has 2 genes here
    assert table.loc["first", ["size", "overlap"]].tolist() == [20, 8]
    assert table.loc["first", "p_value"] == pytest.approx(fisher(8, 20, 15, 200), rel=1e-10)
    assert table.loc["middle", "p_value"] == pytest.approx(fisher(5, 40, 15, 200), rel=1e-10)
    assert table.loc["all", "p_value"] == 1
    assert table.loc["first", "expected"] == pytest.approx(1.5)
    assert table.loc["first", "fold"] == pytest.approx(8 / 1.5)
    assert table.loc["middle", "genes"] == ("g100", "g101", "g102", "g103", "g104")
    assert np.allclose(table["q_value"], false_discovery_control(table["p_value"]))


@settings(max_examples=40, deadline=None)
@given(st.sets(st.integers(0, 49), min_size=1), st.sets(st.integers(0, 59), min_size=1))
def test_any_overlap_agrees_with_fishers_exact_test(drawn, members):
    background = [str(i) for i in range(50)]
    inside = {i for i in members if i < 50}
    if not inside:
        return
    sets = {"s": [str(i) for i in members]}
    row = enrichment([str(i) for i in drawn], sets, background, min_size=1).iloc[0]
    expected = fisher(len(drawn & inside), len(inside), len(drawn), 50)
    assert row["p_value"] == pytest.approx(expected, rel=1e-9)


def test_the_background_changes_the_answer():
    genes = [f"g{i}" for i in range(8)]
    narrow = enrichment(genes, SETS, BACKGROUND[:40]).set_index("gene_set")
    wide = enrichment(genes, SETS, BACKGROUND).set_index("gene_set")
    assert narrow.loc["first", "p_value"] == pytest.approx(fisher(8, 20, 8, 40))
    assert wide.loc["first", "p_value"] == pytest.approx(fisher(8, 20, 8, 200))


def test_factors_are_tested_together():
    genes = [*(f"g{i}" for i in range(6)), *(f"g{i}" for i in range(100, 106))]
    top = pd.DataFrame({"factor": np.repeat(["factor_2", "factor_10"], 6), "gene": genes})
    table = enrich_factors(top, SETS, BACKGROUND)
    assert list(table["factor"].unique()) == ["factor_2", "factor_10"]
    alone = enrichment(genes[:6], SETS, BACKGROUND)
    assert np.array_equal(table["p_value"][:3], alone["p_value"])
    together = false_discovery_control(table["p_value"].to_numpy())
    assert np.array_equal(table["q_value"], together)
    assert table["gene_set"][0] == "first"
    assert table["gene_set"][3] == "middle"
    with pytest.raises(KeyError, match=r"top lacks the columns \['gene'\]"):
        enrich_factors(top[["factor"]], SETS, BACKGROUND)
    with pytest.raises(ValueError, match=r"top holds no gene"):
        enrich_factors(top[:0], SETS, BACKGROUND)


BAD = {
    "outside": (["g1", "nope"], {}, ValueError, r"genes outside the background: 'nope'"),
    "repeated": (["g1", "g1"], {}, ValueError, r"genes are repeated: 'g1'"),
    "empty": ([], {}, ValueError, r"genes is empty"),
    "a string": ("g1", {}, TypeError, r"collection of names, got one string 'g1'"),
    "numbers": ([1, 2], {}, TypeError, r"genes must hold strings, got int 1"),
    "no background": (["g1"], {"background": []}, ValueError, r"background is empty"),
    "size": (["g1"], {"min_size": 0}, ValueError, r"min_size must be at least 1, got 0"),
    "other names": (
        ["ENSG1"],
        {"background": ["ENSG1", "ENSG2"]},
        ValueError,
        r"none of 4 gene sets has 5 genes in the background \(the largest has 0\).*'ENSG1'",
    ),
}


@pytest.mark.parametrize(("genes", "options", "error", "message"), BAD.values(), ids=BAD)
def test_tests_that_mean_nothing_are_refused(genes, options, error, message):
    with pytest.raises(error, match=message):
        enrichment(genes, SETS, **{"background": BACKGROUND, **options})


GOOD = "A\tsee there\tg1\tg2\tg2\t\n\nB\t\tg3\r\n"


def test_gmt_is_read_plain_and_compressed(tmp_path):
    (tmp_path / "a.gmt").write_bytes(GOOD.encode())
    (tmp_path / "a.gmt.gz").write_bytes(gzip.compress(GOOD.encode()))
    for name in ("a.gmt", "a.gmt.gz"):
        sets = read_gmt(tmp_path / name)
        assert sets == {"A": frozenset({"g1", "g2"}), "B": frozenset({"g3"})}


MALFORMED = {
    "no genes": ("A\td\tg1\nB\td\n", r"line 2: expected name, description and genes .* 2 fields"),
    "empty genes": ("A\td\tg1\n\nB\td\t\t\n", r"line 3: expected name.*got 4 fields"),
    "spaces": ("A d g1 g2\n", r"line 1: expected name.*got 1 fields: 'A d g1 g2'"),
    "no name": ("\td\tg1\n", r"line 1: expected name"),
    "twice": ("A\td\tg1\nB\td\tg1\nA\td\tg2\n", r"line 3: set 'A' was read before"),
    "nothing": ("\n\n", r"holds no gene set"),
}


@pytest.mark.parametrize(("text", "message"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_gmt_is_refused_with_the_line(text, message, tmp_path):
    (tmp_path / "a.gmt").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_gmt(tmp_path / "a.gmt")


def test_files_that_are_not_text_are_refused(tmp_path):
    (tmp_path / "a.gmt").write_bytes(b"A\td\t\xff\xfe\n")
    (tmp_path / "b.gmt.gz").write_bytes(b"plain text")
    for name in ("a.gmt", "b.gmt.gz"):
        with pytest.raises(ValueError, match=r"is not a text file in UTF-8"):
            read_gmt(tmp_path / name)


def test_hallmark_sets_are_read(data_dir):
    path = data_dir / "genesets" / "h.all.v7.0.symbols.gmt"
    if not path.is_file():
        pytest.skip(f"{path} not found; set PROBINTERP_DATA")
    sets = read_gmt(path)
    assert len(sets) == 50
    assert np.mean([len(genes) for genes in sets.values()]) == pytest.approx(146, abs=1)


IDS = [f"ENSG{i}" for i in range(60)]
SYMBOLS = {gene: f"S{i}" for i, gene in enumerate(IDS)}
SYMBOLS |= {"ENSG0": "", "ENSG1": "S2", "ENSG3": None}
BY_SYMBOL = {"set": [f"S{i}" for i in range(12)]}


def test_ids_are_read_as_symbols_and_what_has_none_is_reported():
    for symbols in (SYMBOLS, pd.Series(SYMBOLS)):
        table = enrichment(IDS[:10], BY_SYMBOL, IDS, symbols=symbols)
        row = table.iloc[0]
        # without 0 and 3 (no symbol) and 1 and 2 (one symbol of two): 56 genes, 6 of 10 drawn
        assert (row["size"], row["overlap"]) == (8, 6)
        assert row["p_value"] == pytest.approx(fisher(6, 8, 6, 56))
        assert row["genes"] == ("S4", "S5", "S6", "S7", "S8", "S9")
        assert table.attrs["dropped"] == {
            "without_symbol": ("ENSG0", "ENSG3"),
            "ambiguous": ("ENSG1", "ENSG2"),
        }


def test_factors_without_symbols_are_left_out_and_reported():
    top = pd.DataFrame({"factor": ["f", "f", "g", "g"], "gene": [*IDS[4:6], *IDS[:2]]})
    table = enrich_factors(top, BY_SYMBOL, IDS, symbols=SYMBOLS)
    assert table["factor"].tolist() == ["f"]
    assert table.attrs["dropped"]["factors"] == ("g",)
    assert table.attrs["dropped"]["ambiguous"] == ("ENSG1", "ENSG2")
    with pytest.raises(ValueError, match=r"no gene of top has a symbol"):
        enrich_factors(top[2:], BY_SYMBOL, IDS, symbols=SYMBOLS)
    with pytest.raises(ValueError, match=r"genes is empty"):
        enrichment(IDS[:2], BY_SYMBOL, IDS, symbols=SYMBOLS)
    with pytest.raises(ValueError, match=r"symbols names none of the genes.*'ENSG0'"):
        enrichment(IDS[:5], BY_SYMBOL, IDS, symbols={"other": "S1"})
    with pytest.raises(ValueError, match=r"genes that occur more than once"):
        enrichment(IDS[:5], BY_SYMBOL, IDS, symbols=pd.Series(["a", "b"], ["ENSG1", "ENSG1"]))


def test_sets_of_gene_ontology_are_read(data_dir):
    path = data_dir / "genesets" / "enrichr.GO_Biological_Process_2021.gmt"
    if not path.is_file():
        pytest.skip(f"{path} not found; set PROBINTERP_DATA")
    assert len(read_gmt(path)) == 6036
