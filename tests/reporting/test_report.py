import base64
import re
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure as MatplotlibFigure

from probinterp.reporting import Figure, Finding, Section, Table, training_curve, write_report

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Elements, texts and whether every element that opens closes in turn."""

    def __init__(self, path):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style" and data.strip():
            self.texts.append((self.open[-1], data.strip()))

    def attributes(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    def text(self, tag):
        return [text for name, text in self.texts if name == tag]


def picture():
    figure = MatplotlibFigure(figsize=(2, 1))
    figure.subplots().set(title="Losses", xlabel="epoch", ylabel="loss [nats]")
    return figure


@pytest.fixture
def path(tmp_path):
    return tmp_path / "report.html"


def write(path, sections=None, **options):
    sections = [Section("Part")] if sections is None else sections
    return write_report(path, title=options.pop("title", "A report"), sections=sections, **options)


def test_verdicts_come_first_and_say_their_state_in_words(path):
    findings = [Finding("Fits.", True), Finding("Fails.", False), Finding("By the way.")]
    write(path, findings=findings)
    page = Page(path)
    states = [attrs["class"] for attrs in page.attributes("li") if "class" in attrs]
    assert states == ["passed", "failed", "note"]
    assert page.text("b") == ["✓ passed", "✗ failed", "• note"]
    assert page.text("span") == ["Fits.", "Fails.", "By the way."]
    assert page.text("h1") == ["A report"]


def test_figures_are_embedded_with_size_caption_and_alternative(path):
    own = Figure(picture(), "Falls.", alt="A falling line.")
    described = Figure(picture().axes[0], "Falls again.")
    write(path, [Section("Fit", figures=[own, described])])
    page = Page(path)
    first, second = page.attributes("img")
    assert first["alt"] == "A falling line."
    assert second["alt"] == "Losses; horizontal axis: epoch; vertical axis: loss [nats]"
    assert (first["width"], first["height"]) == ("192", "96")
    head, data = first["src"].split(",")
    assert head == "data:image/png;base64"
    png = base64.b64decode(data, validate=True)
    assert png.startswith(b"\x89PNG")
    assert int.from_bytes(png[16:20], "big") == 300  # 2 inches of 150 dots
    assert page.text("figcaption") == ["Falls.", "Falls again."]


def test_tables_print_index_numbers_and_missing_values(path):
    frame = pd.DataFrame(
        {
            "p": [0.0123456, np.nan],
            "n": [3, 40000],
            "ok": [True, False],
            "genes": [["A", "B"], None],
        },
        index=pd.Index(["x", "y"], name="check"),
    )
    write(path, [Section("Checks", tables=[Table(frame, "Two checks.")])])
    page = Page(path)
    assert page.text("th") == ["check", "p", "n", "ok", "genes", "x", "y"]
    assert page.text("td") == ["0.01235", "3", "yes", "A, B", "–", "40000", "no", "–"]
    assert page.text("div") == ["Two checks."]
    assert [attrs.get("class") for attrs in page.attributes("td")][:4] == ["n", "n", None, None]
    scopes = [attrs["scope"] for attrs in page.attributes("th")]
    assert scopes == ["col"] * 5 + ["row"] * 2


def test_an_index_that_counts_rows_is_left_out(path):
    frame = pd.DataFrame({"gene": ["A"], "rank": [1]})
    write(path, [Section("Genes", tables=[Table(frame, "c")])])
    assert Page(path).text("th") == ["gene", "rank"]


def test_an_index_with_two_levels_gives_two_columns(path):
    index = pd.MultiIndex.from_tuples([("a", 1), ("b", 2)], names=["group", "factor"])
    write(path, [Section("Genes", tables=[Table(pd.DataFrame({"q": [1, 2]}, index=index), "c")])])
    page = Page(path)
    assert page.text("th") == ["group", "factor", "q", "a", "1", "b", "2"]
    assert page.text("td") == ["1", "2"]


def test_paragraphs_contents_and_settings_are_listed(path):
    sections = [Section("One", "First.\n\nSecond\nline.\n\n\n"), Section("Two")]
    write(path, sections, settings={"seed": 3, "rate": 0.001, "labels": ("a", 1), "none": None})
    page = Page(path)
    assert page.text("p") == ["First.", "Second\nline."]
    links = [attrs["href"] for attrs in page.attributes("a")]
    assert links == ["#section-1", "#section-2", "#settings"]
    ids = {attrs["id"] for attrs in page.attributes("section")}
    assert {f"#{name}" for name in ids} == set(links)
    assert page.text("td") == ["3", "0.001", "a, 1", "–"]


def test_nothing_is_fetched_and_no_script_runs(path, make_history):
    ax = training_curve(make_history([3.0, 2.0]))
    write(path, [Section("Fit", figures=[Figure(ax, "c")])], settings={"seed": 0})
    page = Page(path)
    text = path.read_text(encoding="utf-8")
    assert "://" not in text
    assert re.findall(r"url\(|@import", text) == []
    assert {"script", "link", "iframe", "object"}.isdisjoint(tag for tag, _ in page.tags)
    sources = [attrs["src"] for _, attrs in page.tags if "src" in attrs]
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    (policy,) = [a["content"] for a in page.attributes("meta") if "http-equiv" in a]
    assert policy.startswith("default-src 'none'")


def test_hostile_names_are_text(path):
    bad = "<script>alert('1')</script>\"><img src=x onerror=alert(1)>"
    frame = pd.DataFrame({bad: [bad]}, index=pd.Index([bad], name=bad))
    section = Section(bad, bad, [Figure(picture(), bad, bad)], [Table(frame, bad)])
    write(path, [section], title=bad, findings=[Finding(bad)], settings={bad: bad})
    page = Page(path)
    assert "<script" not in path.read_text(encoding="utf-8")
    assert len(page.attributes("img")) == 1
    assert page.attributes("img")[0]["alt"] == bad
    assert page.text("h1") == page.text("title") == [bad]
    assert not any("onerror" in attrs for _, attrs in page.tags)
    assert page.text("td") == [bad, bad]


def test_texts_that_no_encoding_holds_do_not_lose_the_report(path):
    write(path, settings={"path": "a\udcff.h5ad"})
    assert Page(path).text("td") == ["a?.h5ad"]


def test_the_same_results_give_the_same_bytes(path, tmp_path):
    def sections():
        return [Section("Fit", figures=[Figure(picture(), "c")])]

    other = tmp_path / "other.html"
    write(path, sections())
    write(other, sections())
    assert path.read_bytes() == other.read_bytes()


def test_a_failure_leaves_the_old_report_and_no_other_file(path, monkeypatch):
    write(path, title="old")
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda number: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write(path, title="new")
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_an_older_report_is_replaced_and_the_path_returned(path):
    write(path, title="old")
    assert write(str(path), title="new") == path
    assert Page(path).text("h1") == ["new"]


def test_pyplot_figures_are_closed(path, make_history):
    ax = training_curve(make_history([2.0, 1.0]))
    write(path, [Section("Fit", figures=[Figure(ax, "c")])])
    assert plt.get_fignums() == []


@pytest.mark.parametrize(
    ("name", "sections", "options", "error", "text"),
    [
        ("report.pdf", [Section("a")], {}, ValueError, "must end in .html, got 'report.pdf'"),
        ("no/report.html", [Section("a")], {}, FileNotFoundError, "cannot write report.html"),
        ("report.html", [], {}, ValueError, "a report needs at least one section, got none"),
        ("report.html", ["a"], {}, TypeError, "sections must be Section objects, got str"),
        (
            "report.html",
            [Section("a")],
            {"findings": ["fine"]},
            TypeError,
            "findings must be Finding objects, got str",
        ),
        (
            "report.html",
            [Section("a", figures=[3])],
            {},
            TypeError,
            "figures of section 'a' must be Figure objects, got int",
        ),
        (
            "report.html",
            [Section("a", tables=[pd.DataFrame()])],
            {},
            TypeError,
            "tables of section 'a' must be Table objects, got DataFrame",
        ),
    ],
)
def test_bad_reports_are_refused(tmp_path, name, sections, options, error, text):
    with pytest.raises(error, match=text):
        write(tmp_path / name, sections, **options)
    assert list(tmp_path.iterdir()) == []


def test_bad_figures_and_tables_are_refused():
    with pytest.raises(TypeError, match="figure must be a matplotlib figure or axes, got str"):
        Figure("loss.png", "c")
    with pytest.raises(TypeError, match="frame must be a pandas DataFrame, got list"):
        Table([1, 2], "c")
    with pytest.raises(ValueError, match="the table 'empty' has no columns"):
        Table(pd.DataFrame(index=[1, 2]), "empty")


def test_formats_are_those_of_the_columns(path):
    frame = pd.DataFrame({"z": [5.6187, -np.inf], "p": [0.0049875, np.nan], "n": [1, 2]})
    write(path, [Section("T", tables=[Table(frame, "Numbers.", {"z": "+.2f", "p": ".2g"})])])
    assert Page(path).text("td") == ["+5.62", "0.005", "1", "-∞", "–", "2"]
    with pytest.raises(ValueError, match=r"unknown columns \['q'\]; the columns are z, p, n"):
        Table(frame, "Numbers.", {"q": ".2g"})


def test_a_summary_stands_before_the_figures_and_tables_after_them(path):
    frame = pd.DataFrame({"a": [1]})
    section = Section(
        "S",
        "Text.",
        [Figure(picture(), "Picture.")],
        [Table(frame, "After.")],
        Table(frame, "First."),
    )
    write(path, [section])
    text = path.read_text()
    places = [text.index(f"<div>{word}</div>") for word in ("First.", "After.")]
    assert places[0] < text.index("<figcaption>Picture.") < places[1]
    with pytest.raises(TypeError, match="tables of section 'S' must be Table objects, got str"):
        write(path, [Section("S", summary="First.")])
