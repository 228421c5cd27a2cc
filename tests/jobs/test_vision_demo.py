"""The vision demonstration: what it writes is what it found."""

import json

import pandas as pd
import pytest

pytest.importorskip("open_clip")

from probinterp.jobs.vision_demo import BAD, EVERY_WINDOW, MAIN, VARIANTS, run_vision_demo


@pytest.mark.slow
def test_demo_writes_what_it_found(tmp_path):
    summary, tables = run_vision_demo(tmp_path / "demo", epochs=2, device="cpu", progress=False)
    assert json.loads((tmp_path / "demo" / "summary.json").read_text()) == summary
    for name, table in tables._asdict().items():
        read = pd.read_csv(tmp_path / "demo" / f"{name}.csv")
        assert len(read) == len(table)
    assert summary["primary"] == "layers 0-3, all tokens"
    verdicts = {name: found["decision"] for name, found in summary["verdicts"].items()}
    assert set(verdicts) == {v.name for v in VARIANTS} | {"ridge", "mean"}
    assert verdicts[BAD] == verdicts["mean"] == "changes"
    assert verdicts[MAIN] != "changes"
    assert summary["mean_r2"][MAIN]["patch"] > 0.95 > summary["mean_r2"][BAD]["patch"]
    rows = tables.replacement.set_index(["proxy", "window"])
    bad = rows.loc[(BAD, "layers 0-3, all tokens")]
    assert bad["high"] < -0.3
    assert set(tables.checks["proxy"]) == {*EVERY_WINDOW, "CLT, spike and slab, own law"}
    assert set(summary["drift"]) == {"CLT, spike and slab"}
    page = (tmp_path / "demo" / "report.html").read_text()
    for heading in (
        "May the proxy stay in the network?",
        "Does it know how wrong it is?",
        "What do features respond to?",
        "Which sources are needed, which suffice?",
    ):
        assert heading in page
