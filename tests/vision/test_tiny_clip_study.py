"""Proxies of the small CLIP's MLPs reach what docs/studies/README.md says of them."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("open_clip")

from probinterp.inference import reconstruction_statistics
from probinterp.jobs.clt_evaluation import evaluate_proxy
from probinterp.vision import contributions

SPEC = importlib.util.spec_from_file_location(
    "tiny_clip_study", Path(__file__).parents[2] / "benchmarks" / "tiny_clip_study.py"
)
study = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(study)


def test_windows_are_all_runs_of_layers():
    windows = [tuple(window) for window in study.every_window(4)]
    assert len(set(windows)) == 10
    assert windows[0] == (0, 1, 2, 3)
    assert (1, 2) in windows
    assert (0, 2) not in windows


@pytest.mark.slow
def test_transcoder_of_eight_codes_stays_and_the_mean_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "EPOCHS", 12)  # a third of the study's
    setting = study.Study(tmp_path)
    clt, plt = (setting.proxy(name, 0) for name in ("CLT k=8", "PLT k=8"))
    r2 = {p: reconstruction_statistics(p, setting.heldout).r2() for p in (clt, plt)}
    assert r2[clt].mean() >= 0.96
    assert r2[clt].mean() - r2[plt].mean() > 0.005
    assert (r2[clt][1:] > r2[plt][1:]).all()  # the first layer has no other to read
    found = {
        proxy: evaluate_proxy(proxy, setting.task, margin=study.MARGIN, windows=[range(4)])
        for proxy in (clt, setting.codeless["mean"])
    }
    good, bad = found.values()
    assert good.primary == bad.primary == "layers 0-3, all tokens"
    assert abs(good.comparisons["layers 0-3, only cls tokens"].difference) <= 0.015
    assert abs(good.comparisons[good.primary].difference) <= 0.03
    assert bad.verdict.decision == "changes"
    assert bad.verdict.beyond
    assert bad.verdicts[bad.primary] is bad.verdict
    assert bad.primary not in bad.family.verdicts
    for tokens in ("cls", "patch", "all"):
        sums = contributions(clt, setting.heldout, tokens=tokens).matrix.sum(0)
        assert sums.numpy() == pytest.approx(1, abs=1e-5)
