"""Count matrix and sample annotation in the layouts that GEO and its readers use.

A count matrix has a line per gene and a column per sample; an annotation is the series matrix of
GEO (a line per field), the same transposed to CSV (a line per sample), or a plain table with the
columns sample name, cancer type and batch. Any of them may be compressed with gzip or zip.
"""

from __future__ import annotations

import csv
import gzip
import io
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp

from probinterp.genomics.validation import Origin, listing, row_blocks, summarise

REQUIRED = ("cancer_type", "batch")
NAMES = (
    "sample_name",
    "source_name_ch1",  # where the series names the columns of its counts
    "source_name",
    "sample",
    "sample_title",
    "title",
    "geo_accession",
)
FIELD = "!Sample_"
NOT_GENES = "__"  # HTSeq's lines of reads without a gene


class Deposited(NamedTuple):
    """A count matrix with names, samples by genes.

    Parameters
    ----------
    counts
        CSR in float32, (N, G).
    samples, genes
        Names, (N,) and (G,).
    n_other_rows
        Lines that count reads outside genes, left out.
    """

    counts: sp.csr_matrix
    samples: pd.Index
    genes: pd.Index
    n_other_rows: int


def read_counts(path: Path) -> Deposited:
    """Counts of a genes-by-samples table, checked to be counts.

    Raises
    ------
    ValueError
        If an id is duplicated or an entry is missing, negative or no integer; the message names
        the gene and the sample.
    """
    text = _text(path)
    rows = csv.reader(io.StringIO(text), delimiter=_delimiter(text, path))
    header, first = next(rows), next(rows, [])
    if len(header) not in (len(first), len(first) - 1) or len(first) < 2:
        raise ValueError(
            f"{path}: expected a line of sample names and then a gene and its counts in each "
            f"line, got {len(header)} and {len(first)} fields in the first two lines."
        )
    samples = [name.strip().strip('"') for name in header[len(header) - len(first) + 1 :]]
    _check_unique(pd.Index(samples), "samples", path)
    table = pd.read_csv(
        io.StringIO(text),
        sep=_delimiter(text, path),
        header=None,
        skiprows=1,
        index_col=0,
        low_memory=False,
    )
    table.index = table.index.astype(str).str.strip()
    other = table.index.str.startswith(NOT_GENES)
    table = table[~other]
    _check_unique(table.index, "genes", path)
    values = _numbers(table, samples, path).T
    counts = sp.csr_matrix(values)
    origin = Origin(str(path), pd.Index(samples), table.index)
    summarise(row_blocks(counts), origin, counts=True)
    return Deposited(counts.astype(np.float32), pd.Index(samples), table.index, int(other.sum()))


def read_annotation(path: Path, samples: pd.Index) -> pd.DataFrame:
    """Sample annotation by sample name, with at least the columns cancer_type and batch.

    A deposit names its samples more than once, by title, source and accession, and its counts
    by one of these: the one that knows most of ``samples`` becomes the index, with its name.

    Raises
    ------
    ValueError
        If there is no column of sample names, cancer types or batches, a name comes twice, or a
        value is missing.
    """
    text = _text(path)
    by_field = any(line.startswith(FIELD + "geo_accession\t") for line in text.splitlines())
    table = _by_field(text) if by_field else _by_sample(text, path)
    names = [known for known in NAMES if _names_samples(table, known)]
    name = max(names, key=lambda known: int(samples.isin(table[known]).sum()), default=None)
    if name is None or (missing := [key for key in REQUIRED if key not in table]):
        lacking = "a column of sample names" if name is None else listing(missing)
        raise ValueError(
            f"{path} lacks {lacking}; expected sample name, cancer type and batch, "
            f"got the columns {listing(table.columns, 12)}."
        )
    for key in (name, *REQUIRED):
        if empty := int((table[key] == "").sum()):
            raise ValueError(f"{path}: {key} is empty for {empty} of {len(table)} samples.")
    _check_unique(pd.Index(table[name]), "samples", path)
    return table.set_index(name)


def _text(path: Path) -> str:
    raw = path.read_bytes()
    try:
        if path.suffix == ".gz":
            raw = gzip.decompress(raw)
        elif path.suffix == ".zip":
            with zipfile.ZipFile(io.BytesIO(raw)) as archive:
                inside = [name for name in archive.namelist() if _is_table(name)]
                if len(inside) != 1:
                    raise ValueError(f"{path} holds {len(inside)} tables, expected one: {inside}.")
                raw = archive.read(inside[0])
        text = raw.decode("utf-8-sig")
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a text table in UTF-8: {error}.") from error
    if not text.strip():
        raise ValueError(f"{path} is empty.")
    return text


def _is_table(name: str) -> bool:
    return name.endswith((".csv", ".txt", ".tsv")) and not name.startswith("__MACOSX")


def _delimiter(text: str, path: Path) -> str:
    first = text.split("\n", 1)[0]
    found = max("\t,;", key=first.count)
    if found not in first:
        raise ValueError(f"{path}: no tab, comma or semicolon in the first line {first[:60]!r}.")
    return found


def _numbers(table: pd.DataFrame, samples: list[str], path: Path) -> np.ndarray:
    if table.shape[1] != len(samples):
        raise ValueError(f"{path}: {len(samples)} samples but {table.shape[1]} columns of counts.")
    numbers = table.apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
    wrong = np.argwhere(np.isnan(numbers))
    if len(wrong):
        gene, sample = wrong[0]
        raise ValueError(
            f"{path}: {len(wrong)} entries are no numbers, the first is "
            f"{table.iloc[gene, sample]!r} of gene {table.index[gene]!r} in sample "
            f"{samples[sample]!r}."
        )
    return numbers


def _by_field(text: str) -> pd.DataFrame:
    lines = csv.reader(io.StringIO(text), delimiter="\t")
    fields = [line for line in lines if line and line[0].startswith(FIELD)]
    return _named(
        [line[0] for line in fields],
        pd.DataFrame([line[1:] for line in fields]).fillna("").T.reset_index(drop=True),
    )


def _by_sample(text: str, path: Path) -> pd.DataFrame:
    table = pd.read_csv(
        io.StringIO(text),
        sep=_delimiter(text, path),
        header=None,
        dtype=str,
        keep_default_na=False,
    )
    return _named(list(table.iloc[0]), table.iloc[1:].reset_index(drop=True))


def _named(headers: list[str], values: pd.DataFrame) -> pd.DataFrame:
    """Columns by name; a characteristic brings its own: ``"cancer type: Breast"``."""
    columns: dict[str, pd.Series] = {}
    for position, header in enumerate(headers):
        column = values.iloc[:, position].str.strip().str.strip('"').str.strip()
        if "characteristics" in header:
            parts = column.str.partition(": ")
            for key in parts.loc[parts[1] != "", 0].unique():
                before = columns.get(_plain(key), "")
                columns[_plain(key)] = parts[2].where(parts[0] == key, before)
        else:
            columns.setdefault(_plain(header), column)
    return pd.DataFrame(columns)


def _plain(header: str) -> str:
    stripped = header.strip().strip('"').removeprefix(FIELD).strip().lower()
    stripped = stripped.removesuffix(":ch1")  # GEOquery's columns of characteristics
    return stripped.replace(" ", "_").replace(".", "_").replace("-", "_")


def _names_samples(table: pd.DataFrame, key: str) -> bool:
    return key in table and bool((table[key] != "").all())


def _check_unique(names: pd.Index, what: str, path: Path) -> None:
    if not names.is_unique:
        twice = names[names.duplicated()].unique()
        raise ValueError(f"{path}: {what} {listing(twice)} occur more than once.")
