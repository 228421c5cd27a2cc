import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from probinterp.vision import extra as extra_module
from probinterp.vision import load_clip, resolve, save_clip, tiny_clip, zero_shot
from probinterp.vision.tiny_clip import (
    CLASS_NAMES,
    MEAN,
    NAME,
    STD,
    TEMPLATES,
    digits,
    folder,
    register_config,
)
from probinterp.vision.tokenizer import ReducedTokenizer

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_tiny_clip.py"


@pytest.fixture(scope="module")
def clip():
    return tiny_clip()


def test_shipped_network_recognises_held_out_digits(clip):
    heldout = digits().heldout
    result = zero_shot(clip.model, heldout.images, CLASS_NAMES, TEMPLATES, labels=heldout.labels)
    assert result.accuracy >= 0.97
    assert result.correct.sum() == 387


def test_shipped_files_are_small_and_loaded_by_open_clip_alone(clip):
    weights = folder() / f"{NAME}.safetensors"
    assert sum(file.stat().st_size for file in folder().iterdir()) <= 3_000_000
    register_config()
    plain = open_clip.create_model(NAME, pretrained=str(weights)).eval()
    images = digits().heldout.images[:8]
    with torch.no_grad():
        assert torch.equal(plain.encode_image(images), clip.model.encode_image(images))


def test_digits_are_standardised_and_split_evenly():
    train, heldout = digits()
    assert (len(train.images), len(heldout.images)) == (1400, 397)
    assert train.images.shape[1:] == (3, 8, 8)
    assert train.images.mean().abs() < 1e-4
    assert train.images.std() == pytest.approx(1, abs=1e-4)
    counts = torch.bincount(heldout.labels, minlength=10)
    assert counts.sum() == 397
    assert counts.min() >= 36
    chosen = np.array([397 * i % 1797 < 397 for i in range(1797)])
    for part, rows in ((train, ~chosen), (heldout, chosen)):
        pixels = (part.images * STD + MEAN).numpy()
        expected = load_digits().images[rows][:, None].repeat(3, 1) / 16
        np.testing.assert_allclose(pixels, expected, atol=1e-6)
        assert part.labels.tolist() == load_digits().target[rows].tolist()


def test_pictures_are_preprocessed_like_the_arrays(clip):
    i = int((~((397 * np.arange(1797)) % 1797 < 397)).nonzero()[0][0])
    grey = (load_digits().images[i] / 16 * 255).round().astype(np.uint8)
    tensor = clip.preprocess(Image.fromarray(grey))
    torch.testing.assert_close(tensor, digits().train.images[0], atol=0.01, rtol=0)


def test_reduced_tokenizer_keeps_the_tokens_of_clip(clip):
    full = open_clip.SimpleTokenizer(context_length=8)
    texts = [t.format(name) for t in TEMPLATES for name in CLASS_NAMES]
    numbers = clip.tokenizer(texts)
    back = torch.tensor(clip.tokenizer.token_ids)[numbers]
    assert torch.equal(back, full(texts))
    assert torch.equal(numbers.argmax(1), full(texts).argmax(1))  # where the text ends
    assert torch.equal(clip.tokenizer("digit one"), clip.tokenizer(["digit one"]))
    with pytest.raises(ValueError, match=r"'digit zebra' has words .* \['zebra'\]"):
        clip.tokenizer(["digit zebra"])
    with pytest.raises(ValueError, match="has 9 tokens"):
        clip.tokenizer(["digit one two three four five six"])
    with pytest.raises(ValueError, match="must ascend"):
        ReducedTokenizer([0, 5, 3], 8)


def test_origin_is_in_the_record(clip):
    record = resolve(clip.model).record()
    assert record["name"] == NAME
    assert record["pretrained"] == f"{NAME}.safetensors"
    assert len(record["pretrained_sha256"]) == 64
    assert record["quick_gelu"] is False
    assert record["image_size"] == [8, 8]


@pytest.fixture(scope="module")
def weights(clip, tmp_path_factory):
    """A file with the state alone, as other training programs leave it."""
    path = tmp_path_factory.mktemp("weights") / "other.pt"
    torch.save(clip.model.state_dict(), path)
    return path


def test_file_of_unknown_origin_needs_the_activation(clip, weights, tmp_path):
    with pytest.raises(ValueError, match=r"other\.pt does not say .* give\s+quick_gelu=True"):
        load_clip(NAME, weights)
    plain = load_clip(NAME, weights, quick_gelu=False)
    quick = load_clip(NAME, weights, quick_gelu=True)
    assert resolve(quick.model).activation == "QuickGELU"
    images = digits().heldout.images[:4]
    with torch.no_grad():
        expected = clip.model.encode_image(images)
        assert torch.equal(plain.model.encode_image(images), expected)
        assert (quick.model.encode_image(images) - expected).abs().max() > 1e-3


def test_file_that_says_its_activation(clip, tmp_path):
    path = tmp_path / "known.safetensors"
    save_clip(clip.model, path, quick_gelu=True)
    assert resolve(load_clip(NAME, path).model).quick_gelu
    with pytest.raises(ValueError, match=r"quick_gelu is False, but .* trained with True"):
        load_clip(NAME, path, quick_gelu=False)
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        save_clip(clip.model, tmp_path / "weights.pt", quick_gelu=True)


def test_published_tag_brings_its_activation(weights, monkeypatch):
    asked = []
    create = open_clip.create_model

    def offline(name, pretrained=None, **options):
        asked.append((name, pretrained, options))
        return create(name, **{k: v for k, v in options.items() if k != "device"})

    monkeypatch.setattr(open_clip, "create_model", offline)
    clip = load_clip("ViT-B-32", "openai")
    assert asked[0][:2] == ("ViT-B-32", "openai")
    assert resolve(clip.model).quick_gelu
    assert resolve(clip.model).record()["pretrained"] == "openai"
    assert clip.tokenizer(["a photo"]).shape == (1, 77)
    with pytest.raises(ValueError, match="openai was trained with True"):
        load_clip("ViT-B-32", "openai", quick_gelu=False)


def test_configuration_that_says_its_activation(weights, tmp_path):
    config = json.loads((folder() / f"{NAME}.json").read_text()) | {"quick_gelu": True}
    (tmp_path / "digits-quickgelu.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    assert resolve(load_clip("digits-quickgelu", weights).model).quick_gelu
    plain = load_clip("digits-quickgelu", weights, quick_gelu=False)
    assert not resolve(plain.model).quick_gelu


@pytest.mark.slow
def test_local_file_of_vit_b_32(tmp_path):
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32", force_quick_gelu=True)
    torch.save(model.half().state_dict(), tmp_path / "b32.pt")
    clip = load_clip("ViT-B-32", tmp_path / "b32.pt", quick_gelu=True)
    (tmp_path / "b32.pt").unlink()
    record = resolve(clip.model).record()
    assert (record["quick_gelu"], record["width"], record["grid"]) == (True, 768, [7, 7])
    assert record["dtype"] == "float32"
    assert clip.preprocess(Image.new("RGB", (300, 250))).shape == (3, 224, 224)


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ImportError, match=r"pip install 'probinterp\[vision\]'"):
        extra_module.open_clip_module()


def test_vision_is_imported_without_open_clip():
    code = (
        "import sys, probinterp.vision\n"
        "heavy = {'open_clip', 'timm', 'torchvision', 'PIL', 'sklearn', 'matplotlib', 'scanpy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_training_example(tmp_path):
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "--epochs", "1", "--out", "trained.safetensors"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "zero-shot accuracy on 397 held-out images" in done.stdout
    register_config()
    clip = load_clip(NAME, tmp_path / "trained.safetensors")
    assert clip.tokenizer(["digit nine"]).shape == (1, 8)
