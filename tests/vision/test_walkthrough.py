"""Towers of real size go from images to a verdict."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("open_clip")
pytest.importorskip("timm")

PATH = Path(__file__).parents[2] / "benchmarks" / "vit_b32_walkthrough.py"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-32", "vit_medium_patch16_gap_256"])
def test_from_images_to_a_verdict(name):
    spec = importlib.util.spec_from_file_location(PATH.stem, PATH)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    seconds, judged = benchmark.walk(name, n_images=2, n_latents=32, n_windows=1)
    assert list(seconds) == ["record", "fit", "replace and evaluate", "judge"]
    assert judged.decision == "not enough data to tell"  # two images
    assert "2 images" in str(judged)
