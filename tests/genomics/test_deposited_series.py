"""Platelet counts in the layouts in which the series is deposited, made by hand."""

import csv
import gzip
import zipfile

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from probinterp.genomics import datasets, from_anndata

SAMPLES = ["3-Breast-Her2-ampl", "HD-1", "HD-2", "Lung-7", "Chol-1"]
DISEASE = ["Breast", "HC", "HC", "Lung", "Hepatobiliary"]
BATCH = ["Batch03", "Batch02", "Batch04", "Batch05", "Batch02"]
GENES = ["ENSG00000000003", "ENSG00000000419", "ENSG00000000457"]
COUNTS = np.array([[7, 5, 90, 8, 5], [0, 6, 6, 9, 9], [12, 50, 5, 0, 9]])


def counts_table(separator, genes=GENES, samples=SAMPLES, counts=COUNTS, corner='""'):
    lines = [separator.join([corner, *(f'"{name}"' for name in samples)])]
    lines += [separator.join([g, *map(str, row)]) for g, row in zip(genes, counts, strict=True)]
    return "\n".join(lines) + "\n"


def plain():
    rows = zip(SAMPLES, DISEASE, BATCH, strict=True)
    return "sample name,cancer type,batch\n" + "".join(f"{a},{b},{c}\n" for a, b, c in rows)


def series_matrix():
    """Fields by line; a sample without the first characteristic has the others in its place."""
    fields = {
        "!Series_title": ["Platelets"],
        "!Sample_title": ["Breast-03", *SAMPLES[1:3], "Lung-07", "Hepatobiliary-01"],
        "!Sample_geo_accession": [f"GSM{i}" for i in range(5)],
        "!Sample_source_name_ch1": SAMPLES,
    }
    moved = [f"cancer type: {name}" for name in DISEASE]
    batch = [f"batch: {name}" for name in BATCH]
    moved[1], batch[1] = batch[1], moved[1]
    lines = [(key, values) for key, values in fields.items()]
    lines += [("!Sample_characteristics_ch1", values) for values in (moved, batch)]
    return "".join("\t".join([k, *(f'"{v}"' for v in values)]) + "\n" for k, values in lines)


def transposed(path):
    """Samples by line, as CSV, with the quotation marks of the series matrix kept."""
    header = ["!Sample_geo_accession", "!Sample_source_name_ch1"]
    header += ["!Sample_characteristics_ch1"] * 2
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for i, (name, disease, batch) in enumerate(zip(SAMPLES, DISEASE, BATCH, strict=True)):
            fields = [f"GSM{i}", name, f"cancer type: {disease}", f"batch: {batch}"]
            writer.writerow([f'"{field}"' for field in fields])


def check(adata):
    assert adata.obs_names.tolist() == SAMPLES[:3]
    assert adata.var_names.tolist() == [GENES[0], GENES[2]]
    assert adata.X.toarray().tolist() == [[7, 12], [5, 50], [90, 5]]
    assert adata.obs["disease"].tolist() == ["Breast", "HC", "HC"]
    assert adata.obs["batch"].tolist() == ["Batch03", "Batch02", "Batch04"]
    assert adata.obs["total_counts"].tolist() == [19, 61, 101]
    assert adata.obs["size_factor"].tolist() == [19 / 55, 1, 95 / 55]
    assert set(map(type, adata.uns["platelets"].values())) <= {int, float, str}


def test_layouts_as_deposited_are_read(tmp_path):
    (tmp_path / "GSE68086_TEP_data_matrix.txt.gz").write_bytes(
        gzip.compress(counts_table("\t").encode())
    )
    (tmp_path / "GSE68086_series_matrix.txt.gz").write_bytes(
        gzip.compress(series_matrix().encode())
    )
    adata = datasets.platelets(tmp_path, symbols={GENES[0]: "TSPAN6"})
    check(adata)
    assert adata.var["symbol"].tolist() == ["TSPAN6", ""]
    record = adata.uns["platelets"]
    assert (record["n_samples_read"], record["n_genes_read"], record["n_HC"]) == (5, 3, 2)
    assert (record["n_samples"], record["n_genes"], record["n_genes_with_symbol"]) == (3, 2, 1)
    assert record["samples_named_by"] == "source_name_ch1"  # titles know two samples only
    adata.write_h5ad(tmp_path / "again.h5ad")
    assert ad.read_h5ad(tmp_path / "again.h5ad").uns["platelets"]["n_HC"] == 2
    assert from_anndata(adata, study_key="disease").study_names == ("Breast", "HC")


def test_tables_of_readers_are_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.csv.zip", "w") as archive:
        archive.writestr("matrix.csv", counts_table(","))
        archive.writestr("__MACOSX/matrix.csv", "x")
    transposed(tmp_path / "series.csv")
    check(datasets.platelets(tmp_path / "m.csv.zip", annotation=tmp_path / "series.csv"))
    (tmp_path / "r.txt").write_text(counts_table("\t").removeprefix('""\t'))  # header one short
    (tmp_path / "plain.csv").write_text(plain())
    check(datasets.platelets(tmp_path / "r.txt", annotation=tmp_path / "plain.csv"))


def test_samples_are_named_by_the_column_that_knows_most_of_them(tmp_path):
    """Columns as GEOquery writes them; counts may be named by any of the names."""
    accessions = [f"GSM{i}" for i in range(5)]
    rows = zip(SAMPLES, accessions, SAMPLES[::-1], DISEASE, BATCH, strict=True)
    known = "title,geo_accession,source_name_ch1,cancer type:ch1,batch:ch1\n"
    known += "".join(f"t{a},{g},{s},{d},{b}\n" for a, g, s, d, b in rows)
    read = read_tables(tmp_path, annotation=known, batches=None, min_count=0)
    assert read.obs["geo_accession"].tolist() == accessions[3::-1]  # without Hepatobiliary
    assert read.obs["disease"].tolist() == DISEASE[3::-1]
    by_accession = counts_table(",", samples=accessions)
    read = read_tables(tmp_path, counts=by_accession, annotation=known, min_count=0)
    assert read.uns["platelets"]["samples_named_by"] == "geo_accession"
    assert read.obs_names.tolist() == accessions[:3]


def test_choices_are_arguments(tmp_path):
    read = read_tables(tmp_path, batches=None, without=(), min_count=0)
    assert read.shape == (5, 3)
    assert read.uns["platelets"]["batches"] == "all"
    assert read_tables(tmp_path, batches=["Batch05"], min_share=1).obs_names.tolist() == ["Lung-7"]


def read_tables(folder, counts=None, annotation=None, **options):
    (folder / "m.csv").write_text(counts_table(",") if counts is None else counts)
    (folder / "a.csv").write_text(plain() if annotation is None else annotation)
    return datasets.platelets(folder / "m.csv", annotation=folder / "a.csv", **options)


def test_samples_without_annotation_are_refused_or_counted(tmp_path):
    short = plain().replace("HD-1,HC,Batch02\n", "other,HC,Batch02\n")
    with pytest.raises(ValueError, match=r"1 of 5 samples .* no annotation in .*: 'HD-1'"):
        read_tables(tmp_path, annotation=short)
    record = read_tables(tmp_path, annotation=short, unannotated="drop").uns["platelets"]
    assert (record["n_without_annotation"], record["n_without_counts"]) == (1, 1)
    strangers = plain().replace("-", "_")
    strangers = strangers.replace("3_Breast", "9_Breast")
    with pytest.raises(ValueError, match=r"5 of 5 samples .* names samples such as '9_Breast"):
        read_tables(tmp_path, annotation=strangers, unannotated="drop")


def test_lines_of_reads_without_a_gene_are_left_out(tmp_path):
    text = counts_table(",") + "__no_feature,1,2,3,4,5\n"
    read = read_tables(tmp_path, counts=text)
    check(read)
    assert read.uns["platelets"]["n_rows_without_gene"] == 1


TWICE = [GENES[0], GENES[0], GENES[2]]
BAD_COUNTS = {
    "genes twice": (
        counts_table(",", genes=TWICE),
        r"genes 'ENSG00000000003' occur more than once",
    ),
    "samples twice": (
        counts_table(",", samples=["HD-1", *SAMPLES[1:]]),
        r"samples 'HD-1' occur more than once",
    ),
    "fractions": (
        counts_table(",", counts=COUNTS + 0.5),
        r"a non-integer count.*",
    ),
    "negative": (counts_table(",", counts=COUNTS - 6), r"a negative count"),
    "words": (counts_table(",").replace("90", "many"), r"1 entries are no numbers.*'many'.*'HD-2'"),
    "holes": (counts_table(",").replace("90", ""), r"1 entries are no numbers.*ENSG00000000003"),
    "ragged": (counts_table(",", samples=SAMPLES[:3]), r"4 and 6 fields in the first two lines"),
    "one column": ("a\nb\n", r"no tab, comma or semicolon"),
    "empty": ("\n", r"is empty"),
}


@pytest.mark.parametrize(("text", "message"), BAD_COUNTS.values(), ids=BAD_COUNTS)
def test_bad_counts_are_refused(text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_tables(tmp_path, counts=text)


BAD_ANNOTATION = {
    "twice": (plain() + "HD-1,HC,Batch02\n", r"samples 'HD-1' occur more than once"),
    "no batch": (plain().replace("batch", "lane"), r"lacks 'batch'.*'cancer_type', 'lane'"),
    "no name": (plain().replace("sample name", "who"), r"lacks a column of sample names"),
    "hole": (plain().replace("HD-1,HC", "HD-1,"), r"cancer_type is empty for 1 of 5 samples"),
}


@pytest.mark.parametrize(("text", "message"), BAD_ANNOTATION.values(), ids=BAD_ANNOTATION)
def test_bad_annotation_is_refused(text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_tables(tmp_path, annotation=text)


BAD_OPTIONS = {
    "batch": ({"batches": ["Batch09"]}, ValueError, r"batch 'Batch09' does not occur; there are"),
    "string": ({"batches": "Batch02"}, TypeError, r"must be sequences of names"),
    "count": ({"min_count": -1}, ValueError, r"min_count must be >= 0"),
    "share": ({"min_share": 90}, ValueError, r"min_share in \[0, 1\], got 5 and 90"),
    "genes": ({"min_count": 1000}, ValueError, r"no gene has 1000 counts in 90% of 3 samples"),
    "groups": ({"without": DISEASE}, ValueError, r"no sample is left"),
    "unannotated": ({"unannotated": "skip"}, ValueError, r"'raise' or 'drop', got 'skip'"),
}


@pytest.mark.parametrize(("options", "error", "message"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_bad_options_are_refused(options, error, message, tmp_path):
    with pytest.raises(error, match=message):
        read_tables(tmp_path, **options)


def test_missing_files_say_where_the_series_is(tmp_path, monkeypatch):
    monkeypatch.setenv("PROBINTERP_DATA", str(tmp_path))
    for path in (None, tmp_path, tmp_path / "no.h5ad"):
        with pytest.raises(FileNotFoundError, match=r"GSE68086_TEP.*Omnibus.*platelet_like"):
            datasets.platelets(path)
    (tmp_path / "m.csv").write_text(counts_table(","))
    with pytest.raises(FileNotFoundError, match=r"a\.csv not found"):
        datasets.platelets(tmp_path / "m.csv", annotation=tmp_path / "a.csv")
    with pytest.raises(ValueError, match=r"is a table of counts: give annotation"):
        datasets.platelets(tmp_path / "m.csv")


def test_files_that_are_not_tables_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text(plain())
    for name, content in {"m.gz": b"text", "m.zip": b"text", "m.csv": b"\xff\xfe,\n"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=r"is not a text table in UTF-8"):
            datasets.platelets(tmp_path / name, annotation=tmp_path / "a.csv")
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("a.csv", "x")
        archive.writestr("b.csv", "x")
    with pytest.raises(ValueError, match=r"holds 2 tables, expected one"):
        datasets.platelets(tmp_path / "two.zip", annotation=tmp_path / "a.csv")


def test_h5ad_is_checked(tmp_path):
    obs = pd.DataFrame({"cancer_type": DISEASE, "batch": BATCH}, index=SAMPLES)
    var = pd.DataFrame({"symbol": ["TSPAN6", "", "SCYL3"]}, index=GENES)
    good = ad.AnnData(COUNTS.T.astype(np.int32), obs, var)
    good.write_h5ad(tmp_path / "a.h5ad")
    check(datasets.platelets(tmp_path / "a.h5ad"))
    check(datasets.platelets(tmp_path))
    with pytest.raises(ValueError, match=r"has its own annotation"):
        datasets.platelets(tmp_path / "a.h5ad", annotation=tmp_path / "a.h5ad")
    ad.AnnData(COUNTS.T + 0.5, obs, var).write_h5ad(tmp_path / "b.h5ad")
    with pytest.raises(ValueError, match=r"a non-integer count"):
        datasets.platelets(tmp_path / "b.h5ad")
    with pytest.raises(ValueError, match=r"holds several files 'a\.h5ad', 'b\.h5ad'"):
        datasets.platelets(tmp_path)
    ad.AnnData(good.X, obs, var[[]]).write_h5ad(tmp_path / "c.h5ad")
    with pytest.raises(KeyError, match=r"'symbol' not in adata\.var"):
        datasets.platelets(tmp_path / "c.h5ad")
    ad.AnnData(good.X, obs[["batch"]], var).write_h5ad(tmp_path / "d.h5ad")
    with pytest.raises(KeyError, match=r"'cancer_type' not in adata\.obs"):
        datasets.platelets(tmp_path / "d.h5ad")
