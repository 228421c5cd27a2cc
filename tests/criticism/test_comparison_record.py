"""Records of comparisons."""

import hashlib
import json
from dataclasses import replace

import pytest

from probinterp.criticism import comparison as cmp

NETWORK = [1, 1, 1, 0, 1, 0, 1, 1]
FIRST = [1, 1, 0, 0, 1, 1, 1, 1]
SECOND = [1, 0, 0, 0, 1, 0, 1, 1]


def record(proxy, **changes):
    found = cmp.paired_accuracy(NETWORK, proxy)
    made = cmp.Record(
        backbone={"name": "ViT-B-32", "weights": "ab", "quick_gelu": True},
        hook_names=["mlp.0", "mlp.1"],
        proxy_hash="cd",
        dataset="digits",
        split="test",
        image_hash=cmp.hash_of([3, 1, 2]),
        template_hash=cmp.hash_of(["a photo of {}", "zero"]),
        preprocess_hash=cmp.hash_of("Compose()"),
        tokens="cls",
        window=range(2),
        cells=found.cells,
        margin=0.01,
        margin_declared="before",
        margin_declared_at="2025-01-01T00:00:00Z",
        numbers=found.numbers(),
    )
    return replace(made, **changes)


def test_a_record_comes_back_from_its_file(tmp_path):
    made = record(FIRST, kept=(0, 1), seeds={"bootstrap": 0})
    made.to_json(tmp_path / "record.json")
    again = cmp.Record.from_json(tmp_path / "record.json")
    assert again == made
    content = json.loads((tmp_path / "record.json").read_text())
    assert content["n"] == 8
    assert content["cells"] == {"both": 5, "network_only": 1, "proxy_only": 1, "neither": 1}


def test_hashes_are_sha256_of_json():
    expected = hashlib.sha256(b'["a", "b"]').hexdigest()
    assert cmp.hash_of(["a", "b"]) == expected
    assert cmp.hash_of("a") == hashlib.sha256(b"a").hexdigest()


@pytest.mark.parametrize("name", ["image_hash", "template_hash", "preprocess_hash"])
def test_records_of_other_data_cannot_be_compared(name):
    with pytest.raises(cmp.IncomparableRecordsError, match=f"{name} differ"):
        cmp.compare_records(record(FIRST), record(SECOND, **{name: "x"}), FIRST, SECOND)
    other = record(SECOND, cells=cmp.Cells(1, 2, 3, 4))
    with pytest.raises(cmp.IncomparableRecordsError, match="n differ"):
        cmp.require_comparable(record(FIRST), other)


def test_records_of_the_same_data_are_compared_image_by_image():
    found = cmp.compare_records(record(FIRST), record(SECOND), FIRST, SECOND)
    assert found.cells == cmp.paired_accuracy(FIRST, SECOND).cells == (4, 2, 0, 2)
    with pytest.raises(
        ValueError, match="the record says 4 of 8 images are recognised, got 6 of 8"
    ):
        cmp.compare_records(record(FIRST), record(SECOND), FIRST, FIRST)


def test_bad_records_are_refused(tmp_path):
    with pytest.raises(ValueError, match="margin_declared must be before or after"):
        record(FIRST, margin_declared="never")
    with pytest.raises(ValueError, match="image_hash must not be empty"):
        record(FIRST, image_hash="")
    path = tmp_path / "record.json"
    record(FIRST).to_json(path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"n": 9}))
    with pytest.raises(ValueError, match="says 9 images, but its cells hold 8"):
        cmp.Record.from_json(path)
    del content["tokens"]
    path.write_text(json.dumps(content | {"token": "cls"}))
    with pytest.raises(ValueError, match=r"missing \['tokens'\], unknown \['token'\]"):
        cmp.Record.from_json(path)
