"""Recipes for data sets that are not here run on random images with random weights."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

RECIPES = sorted((Path(__file__).parents[1] / "examples" / "recipes").glob("*.py"))


def test_recipes_are_short():
    assert [path.name for path in RECIPES] == [
        "cifar100_clt.py",
        "coco_clt.py",
        "imagenet100_clt.py",
    ]
    assert max(len(path.read_text().splitlines()) for path in RECIPES) < 100


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_runs_dry(path, tmp_path):
    pytest.importorskip("open_clip")
    pytest.importorskip("torchvision")
    done = subprocess.run(
        [sys.executable, str(path), "--dry-run"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Not enough data to tell" in done.stdout  # two images
