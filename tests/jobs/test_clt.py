"""From digits to a verdict, by files."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from probinterp.criticism.comparison import Record
from probinterp.jobs.clt import evaluate_clt, fit_clt, record_clt
from probinterp.jobs.clt_evaluation import (
    classification,
    evaluate_faithfulness,
    evaluate_proxy,
    window_label,
)
from probinterp.jobs.clt_fitting import (
    Activation,
    ExchangedOutputs,
    fit_transcoder,
    make_transcoder,
)
from probinterp.jobs.clt_sources import (
    open_recording,
    proxy_names,
    require_fitting,
    task_of,
)
from probinterp.vision import (
    digits,
    record_activations,
    replace_mlps,
    resolve,
    tiny_clip,
    zero_shot,
)
from probinterp.vision.tiny_clip import CLASS_NAMES, MEAN, STD, TEMPLATES

pytest.importorskip("open_clip")


@pytest.fixture(scope="module")
def few():
    images, labels = digits().heldout
    return record_activations(
        tiny_clip().model, images[:20], labels=labels[:20], store="both", progress=False
    )


@pytest.mark.parametrize("activation", list(Activation))
def test_every_activation_makes_a_transcoder_of_the_tower(few, activation):
    clt = make_transcoder(few, activation=activation, n_latents=32, target_l0=4, seed=0)
    assert (clt.n_layers, clt.width, clt.n_latents) == (4, 64, 32)
    assert clt.metadata["backbone"] == few.manifest["backbone"]


def test_impossible_sizes_are_refused(few):
    with pytest.raises(ValueError, match="must be one of relu-topk"):
        make_transcoder(few, activation="relu")
    with pytest.raises(ValueError, match="must be whole for top-k, got 2.5"):
        make_transcoder(few, target_l0=2.5)
    with pytest.raises(ValueError, match="is a weight of jump-relu, got it for relu-topk"):
        make_transcoder(few, sparsity=0.1)
    assert make_transcoder(few, activation="jump-relu", sparsity=0.1).activation.sparsity == 0.1
    with pytest.raises(ValueError, match="more than 0 and fewer than the 8 latents, got 16"):
        make_transcoder(few, n_latents=8)


def test_exchanged_outputs_are_those_of_other_tokens(few):
    exchanged, true = ExchangedOutputs(few, seed=0).batch(), few.batch()
    assert (exchanged.inputs == true.inputs).all()
    assert exchanged.x.sum(0).numpy() == pytest.approx(true.x.sum(0).numpy(), abs=1e-2)
    assert not np.allclose(exchanged.x, true.x)


def test_transcoders_of_one_name_are_told_apart(tmp_path):
    names = proxy_names([tmp_path / "a" / "clt" / "model", tmp_path / "b" / "clt" / "model"])
    assert names == ["a/clt", "b/clt"]
    assert proxy_names([tmp_path / "clt" / "model"]) == ["clt"]
    assert proxy_names([tmp_path / "x" / "ridge" / "model"]) == ["x/ridge"]  # not the baseline
    with pytest.raises(ValueError, match="is named twice"):
        proxy_names([tmp_path / "clt" / "model"] * 2)


def test_a_transcoder_is_not_judged_by_the_images_or_tokens_of_another_kind(few):
    clt, source = make_transcoder(few, n_latents=8, target_l0=2), {"images": "digits"}
    clt.metadata = clt.metadata | {"source": source}
    with pytest.raises(ValueError, match="was fitted to the images of there"):
        require_fitting(clt, "model", few, "there", source)
    require_fitting(clt, "model", few, "there", {"images": "others"})
    clt.metadata = clt.metadata | {"tokens": "cls"}
    with pytest.raises(ValueError, match="to cls tokens, there has all tokens"):
        require_fitting(clt, "model", few, "there", {"images": "others"})


def test_impossible_inputs_are_named(few, tmp_path):
    clt = make_transcoder(few, n_latents=8, target_l0=2)
    with pytest.raises(ValueError, match="learning_rate must be positive, got 0"):
        fit_transcoder(clt, few, learning_rate=0, progress=False)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"broken.png cannot be read as a picture"):
        record_clt("tiny-clip", str(tmp_path), tmp_path.parent / "r1", progress=False)
    with pytest.raises(ValueError, match="part is for the digits alone, got 'heldout'"):
        record_clt("tiny-clip", str(tmp_path), tmp_path.parent / "r2", part="heldout")
    with pytest.raises(ValueError, match=r"knows no network 'ViT-B32'; close ones: ViT-B-32"):
        record_clt("ViT-B32", "digits", tmp_path.parent / "r3")
    with pytest.raises(ValueError, match="nor a tag of weights of ViT-B-32: .*openai"):
        record_clt("ViT-B-32", "digits", tmp_path.parent / "r4", pretrained="nowhere")


def test_classes_are_the_folders_that_hold_pictures(tmp_path):
    images, labels = digits().heldout
    for name in ("one", "two", "zero", "nine", ".ipynb_checkpoints"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
    for number, name in ((0, "zero"), (1, "one"), (2, "two")):
        for i in (labels == number).nonzero().flatten()[:3].tolist():
            pixels = (images[i, 0] * STD + MEAN).clip(0, 1).mul(255).byte().numpy()
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{i}.png")
    record_clt("tiny-clip", str(tmp_path / "pictures"), tmp_path / "recorded", progress=False)
    task = task_of(*open_recording(tmp_path / "recorded"), ("the number {}",))
    assert task.class_names == ["one", "two", "zero"]
    found = zero_shot(task.tower, task.images, task.class_names, task.templates, text=task.text)
    assert found.accuracy == 1


def test_a_recording_of_class_tokens_is_judged_by_them():
    images, labels = digits().heldout
    tower = resolve(tiny_clip().model)
    options = {"labels": labels[:20], "progress": False}
    data = record_activations(tower, images[:20], tokens="cls", **options)
    task = classification(tower, images[:20], labels[:20], CLASS_NAMES, TEMPLATES, data)
    clt = make_transcoder(data, n_latents=8, target_l0=2)
    fit_transcoder(clt, data, epochs=5, batch_size=5, device="cpu", progress=False)
    found = evaluate_proxy(clt.eval(), task, margin=0.5)
    assert set(found.reconstruction) == {"cls"}
    assert found.verdicts[found.primary] is found.verdict  # by itself, not in the family
    assert set(found.family.verdicts) == set(found.verdicts) - {found.primary}
    assert found.primary == "layers 0-3, only cls tokens"
    kept = evaluate_faithfulness(clt, task)
    with replace_mlps(tower, clt, tokens="cls"):
        whole = zero_shot(tower, images[:20], CLASS_NAMES, TEMPLATES, labels=labels[:20])
    assert kept.without[0].accuracy_network == whole.accuracy  # of class tokens alone
    assert set(kept.contributions) == {"cls"}
    assert kept.without[3].cells == kept.without_anywhere[3].cells
    assert set(kept.without) == set(kept.without_anywhere) == set(range(4))
    with pytest.raises(ValueError, match=r"kept must be 1 to 3 of 4 sources, got 0"):
        evaluate_faithfulness(clt, task, kept=0)


def test_window_labels():
    assert window_label((1, 2, 3), "cls") == "layers 1-3, only cls tokens"
    assert window_label((3,), "all") == "layer 3, all tokens"
    assert window_label((0, 2), "patch") == "layers 0,2, only patch tokens"


@pytest.mark.slow
def test_record_fit_evaluate_report(tmp_path):
    for part in ("train", "heldout"):
        record_clt("tiny-clip", "digits", tmp_path / part, part=part, progress=False)
    summary = fit_clt(
        tmp_path / "train",
        tmp_path / "clt",
        n_latents=64,
        target_l0=8,
        epochs=1,
        device="cpu",
        progress=False,
    )
    assert summary["n_images"] == 1400
    assert min(summary["training_r2"]) > 0.7
    assert summary["active_codes"] == [8] * 4
    with pytest.raises(ValueError, match="was fitted to the images"):
        evaluate_clt(tmp_path / "clt" / "model", tmp_path / "train", tmp_path / "no", margin=0.01)
    found, table = evaluate_clt(
        tmp_path / "clt" / "model",
        tmp_path / "heldout",
        tmp_path / "out",
        margin=0.01,
        train=tmp_path / "train",
    )
    identity = table[table["proxy"] == "identity"]
    assert (identity["change"] == 0).all()
    assert found["verdicts"]["identity"]["decision"] == "preserves"
    assert found["verdicts"]["mean"]["decision"] == "changes"
    columns = np.array(found["contributions"]["cls"]).sum(0)
    assert columns == pytest.approx(np.ones(4), abs=1e-5)
    read = pd.read_csv(tmp_path / "out" / "reconstruction.csv")
    assert (read[read["proxy"] == "identity"]["R2"] > 0.9999).all()
    records = [Record.from_json(p) for p in sorted((tmp_path / "out" / "records").iterdir())]
    assert {r.margin_declared for r in records} == {"before"}
    assert records[0].n == 397
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["n_images"] == 397
    checks = pd.read_csv(tmp_path / "out" / "checks.csv")
    assert set(checks["proxy"]) == {"clt", "ridge"} == set(found["checks"])
    assert len(checks) == 2 * (10 * 8 + 4 + 2)  # Moran of patches, one correlation a type
    flagged = checks[checks["flagged"]].groupby("proxy")["discrepancy"].agg(set)
    assert "layer_correlation" in flagged["ridge"]
    assert flagged["ridge"] == set(found["checks"]["ridge"])
    assert "May the proxy stay" in (tmp_path / "out" / "report.html").read_text()
