import json

import numpy as np
import open_clip
import pytest
import torch
from open_clip.model import convert_weights_to_lp
from PIL import Image
from torchvision.datasets import ImageFolder

from probinterp import fit
from probinterp.inference.data import Data, minibatch_order
from probinterp.models.activation_priors import ReLUTopK
from probinterp.models.transcoder import CrossLayerTranscoder
from probinterp.vision import (
    ManifestMismatchError,
    TowerMismatchError,
    open_activations,
    record_activations,
    resolve,
    stream_activations,
)
from probinterp.vision.activation_shards import decode, encode
from probinterp.vision.capture import capturing, evaluating
from probinterp.vision.image_source import image_batches, image_source

TEXT = {"context_length": 8, "vocab_size": 32, "width": 32, "heads": 2, "layers": 1}
VISION = {"image_size": 16, "layers": 3, "width": 32, "head_width": 16, "patch_size": 4}


def backbone():
    torch.manual_seed(0)
    return open_clip.CLIP(32, VISION, TEXT)


@pytest.fixture
def images():
    return torch.randn(13, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def record(model, images, **options):
    return record_activations(model, images, **({"batch_size": 4, "progress": False} | options))


def truth(model, images, layers=(0, 1, 2)):
    """Inputs and outputs (images, tokens, L, D) of one pass over all images."""
    tower = resolve(model)
    with capturing(tower, layers) as seen, evaluating(model):
        tower.encode_image(images)
    return [torch.stack([part[i] for i in layers], 2) for part in (seen.inputs, seen.outputs)]


def test_every_token_of_every_image_comes_with_its_layers(images, device):
    model = backbone().train().to(device)
    data = record(model, images, labels=list(range(13)))
    assert isinstance(data, Data)
    assert len(data) == 13 * 17
    batch = data.batch()
    inputs, outputs = (part.cpu() for part in truth(model, images.to(device)))
    torch.testing.assert_close(batch.inputs, inputs.flatten(0, 1))
    torch.testing.assert_close(batch.x, outputs.flatten(0, 1))
    assert torch.equal(batch.image, torch.arange(13).repeat_interleave(17))
    assert torch.equal(batch.token_type, (torch.arange(17) > 0).long().repeat(13))
    assert torch.equal(data.image, batch.image)
    assert torch.equal(data.token_type, batch.token_type)
    assert torch.equal(data.labels, torch.arange(13))
    assert model.visual.training  # as it was


def test_rows_in_any_order(images):
    data = record(backbone(), images)
    order = torch.randperm(len(data))[:50]
    chosen, everything = data.batch(order), data.batch().rows(order)
    for name in ("inputs", "image", "token_type"):
        assert torch.equal(getattr(chosen, name), getattr(everything, name))
    torch.testing.assert_close(chosen.x, everything.x)


@pytest.mark.parametrize(
    ("tokens", "kept"),
    [("cls", [0]), ("patch", list(range(1, 17))), (("cls", "patch"), list(range(17)))],
)
def test_layers_and_tokens_are_selected(images, tokens, kept):
    model = backbone()
    data = record(model, images, layers=[0, 2], tokens=tokens)
    inputs, outputs = truth(model, images, (0, 2))
    torch.testing.assert_close(data.batch().inputs, inputs[:, kept].flatten(0, 1))
    torch.testing.assert_close(data.batch().x, outputs[:, kept].flatten(0, 1))
    assert data.manifest["layers"] == [0, 2]
    assert data.manifest["token_index"] == kept


def test_kinds_of_token_are_refused_where_there_are_none(images):
    with pytest.raises(ValueError, match="no register tokens: 1 class tokens and 0 registers"):
        record(backbone(), images, tokens="register")
    with pytest.raises(ValueError, match="tokens must be 'all' or some of"):
        record(backbone(), images, tokens="class")
    with pytest.raises(ValueError, match="no patch tokens were recorded"):
        record(backbone(), images, tokens="cls").of_type("patch")


@pytest.mark.parametrize("path", [None, "folder"])
def test_exact_store_returns_exactly_what_the_hooks_saw(images, tmp_path, path):
    model = backbone()
    folder = path and tmp_path / path
    kept = record(model, images, store="both", path=folder, batch_size=13)
    inputs, outputs = truth(model, images)
    assert torch.equal(kept.batch().inputs, inputs.flatten(0, 1))
    assert torch.equal(kept.batch().x, outputs.flatten(0, 1))


@pytest.mark.parametrize(
    ("dtype", "error"),
    [
        (torch.float32, 0.0),
        (torch.float16, 2**-11),
        (torch.bfloat16, 2**-8),
        (torch.int8, 0.5 / 127),
    ],
)
def test_lossy_inputs_still_come_with_their_exact_outputs(images, tmp_path, dtype, error):
    model = backbone()
    data = record(model, images, path=tmp_path / "a", dtype=dtype, shard_images=5)
    inputs, _ = truth(model, images)
    batch = data.batch()
    largest = inputs.flatten(0, 1).abs().amax(-1, keepdim=True)
    assert ((batch.inputs - inputs.flatten(0, 1)).abs() <= error * largest + 1e-6).all()
    again = [mlp(batch.inputs[:, i]) for i, mlp in enumerate(resolve(model).mlps)]
    assert torch.equal(batch.x, torch.stack(again, 1))
    memory = record(model, images, dtype=dtype)
    assert torch.equal(memory.batch().inputs, batch.inputs)
    size = np.load(tmp_path / "a" / "inputs-00000.npy").nbytes
    assert size == 5 * 3 * 17 * 32 * dtype.itemsize


def test_codec_of_tokens_that_are_zero_or_too_large():
    zeros = encode("x", torch.zeros(2, 4), "int8")
    assert torch.equal(decode(zeros, "x", "int8", slice(None)), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="exceed float16"):
        encode("x", torch.full((2, 4), 1e5), "float16")
    with pytest.raises(ValueError, match="not finite"):
        encode("x", torch.tensor([[float("nan")]]), "float32")


def test_store_both_rounds_pairs_apart(images):
    model = backbone()
    both = record(model, images, store="both", dtype=torch.bfloat16).batch()
    inputs = record(model, images, store="inputs", dtype=torch.bfloat16).batch()
    assert torch.equal(both.inputs, inputs.inputs)
    relative = (both.x - inputs.x).norm() / inputs.x.norm()
    assert 1e-4 < relative < 1e-2


def test_stream_equals_the_store(images, device):
    model = backbone().to(device)
    stored = record(model, images, labels=torch.arange(13))
    stream = stream_activations(model, images, batch_size=4, kept_images=3, labels=range(13))
    assert stream.block_size == 17
    assert torch.equal(stream.labels, stored.labels)
    for index in minibatch_order(len(stream), 40, seed=0, epoch=0, block_size=17):
        a, b = stream.batch(index), stored.batch(index)
        torch.testing.assert_close(a.inputs, b.inputs)
        torch.testing.assert_close(a.x, b.x)
        assert torch.equal(a.image, b.image)


def test_minibatches_of_blocks_mix_images(images, tmp_path):
    data = record(backbone(), images, path=tmp_path / "a")
    assert data.block_size == 17
    assert record(backbone(), images).block_size == 1
    order = minibatch_order(len(data), 64, seed=0, epoch=0, block_size=data.block_size)
    assert torch.equal(torch.cat(order).sort().values, torch.arange(len(data)))
    assert len(data.batch(order[0]).image.unique()) >= 12


def test_split_never_cuts_an_image(images):
    data = record(backbone(), images, labels=range(13))
    train, heldout = data.split(by="image", fraction=0.3, seed=4)
    assert (train.n_images, heldout.n_images) == (9, 4)
    assert not set(train.image.tolist()) & set(heldout.image.tolist())
    assert torch.equal(heldout.labels, heldout.image_index)
    again = data.split(fraction=0.3, seed=4)[1]
    assert torch.equal(again.image_index, heldout.image_index)
    everything = data.batch()
    rows = torch.isin(everything.image, heldout.image_index)
    assert torch.equal(heldout.batch().inputs, everything.inputs[rows])
    cls = heldout.of_type("cls").images([3, 0])
    assert cls.image.tolist() == heldout.image_index[[3, 0]].tolist()
    assert torch.equal(cls.batch().inputs[1], everything.inputs[17 * heldout.image_index[0]])
    with pytest.raises(ValueError, match="split by 'image'"):
        data.split(by="token")
    with pytest.raises(ValueError, match="leaves one part empty"):
        data.split(fraction=0.01)


@pytest.mark.engine
def test_transcoder_is_fitted_to_a_store_and_to_a_stream_alike(images, tmp_path):
    model = backbone()
    sources = {
        "folder": record(model, images, path=tmp_path / "a", shard_images=4),
        "stream": stream_activations(model, images, batch_size=4),
    }
    losses = {}
    for name, data in sources.items():
        torch.manual_seed(0)
        clt = CrossLayerTranscoder(3, 32, 16, activation=ReLUTopK(4))
        train, heldout = data.split()
        history = fit(
            clt, train, max_epochs=2, batch_size=64, heldout=heldout, progress=False, seed=0
        )
        losses[name] = history.records[-1].heldout_loss
    assert losses["stream"] == pytest.approx(losses["folder"], rel=1e-4)


class Interrupted(Exception):
    pass


class Stopping(torch.utils.data.Dataset):
    """Pairs of image and label; the n-th reading of an image fails."""

    def __init__(self, images, stop=None):
        self.images, self.stop, self.read = images, stop, 0

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        self.read += 1
        if self.stop is not None and i >= self.stop:
            raise Interrupted
        return self.images[i], i % 10


def test_interrupted_recording_goes_on_where_it_stopped(images, tmp_path):
    model = backbone()
    options = {"shard_images": 4, "batch_size": 2, "dtype": torch.bfloat16}
    whole = record(model, Stopping(images), path=tmp_path / "whole", **options)
    with pytest.raises(Interrupted):
        record(model, Stopping(images, stop=9), path=tmp_path / "parts", **options)
    with pytest.raises(FileNotFoundError, match="was interrupted"):
        open_activations(tmp_path / "parts")
    rest = Stopping(images)
    data = record(model, rest, path=tmp_path / "parts", **options)
    # two to check the hooks, three of each shard to know the images again, the rest once; the last
    # shard has one image
    assert rest.read == 2 + 3 * 3 + 1 + 5
    assert torch.equal(data.batch().inputs, whole.batch().inputs)
    assert torch.equal(data.labels, torch.arange(13) % 10)
    for name in sorted(p.name for p in (tmp_path / "whole").iterdir()):
        same = (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
        assert same, name
    assert not list(tmp_path.rglob("*.part"))


def test_complete_recording_is_not_repeated(images, tmp_path):
    model = backbone()
    record(model, Stopping(images), path=tmp_path / "a", shard_images=5)
    again = Stopping(images)
    record(model, again, path=tmp_path / "a", shard_images=5)
    assert again.read == 3 * 3  # first, middle and last image of each shard


@pytest.mark.parametrize("changed", [0, 2, 4])
def test_other_images_or_labels_are_not_taken_for_those_recorded(images, tmp_path, changed):
    model, labels = backbone(), torch.arange(13)
    record(model, images, labels=labels, path=tmp_path / "a", shard_images=5)
    others = images.clone()
    others[changed] += 1
    with pytest.raises(ManifestMismatchError, match=f"image {changed} is not the one"):
        record(model, others, labels=labels, path=tmp_path / "a", shard_images=5)
    with pytest.raises(ManifestMismatchError, match="labels_sha256 is"):
        record(model, images, labels=labels.flip(0), path=tmp_path / "a", shard_images=5)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"dtype": torch.float16}, "dtype"),
        ({"layers": [0, 1]}, "layers"),
        ({"tokens": "cls"}, "tokens"),
        ({"store": "both"}, "store"),
    ],
)
def test_other_recording_in_the_folder_is_refused(images, tmp_path, change, what):
    record(backbone(), images, path=tmp_path / "a")
    with pytest.raises(ManifestMismatchError, match=f"{what} is"):
        record(backbone(), images, path=tmp_path / "a", **change)


def test_another_batch_size_may_finish_a_recording(images, tmp_path):
    with pytest.raises(Interrupted):
        record(backbone(), Stopping(images, stop=9), path=tmp_path / "a", shard_images=4)
    data = record(backbone(), Stopping(images), path=tmp_path / "a", shard_images=4, batch_size=2)
    torch.testing.assert_close(data.batch().inputs, record(backbone(), images).batch().inputs)


def test_other_images_or_weights_in_the_folder_are_refused(images, tmp_path):
    record(backbone(), images, path=tmp_path / "a", shard_images=5)
    other = images.clone()
    other[5, 0, 0, 0] += 1
    with pytest.raises(ManifestMismatchError, match="image 5 is not the one"):
        record(backbone(), other, path=tmp_path / "a", shard_images=5)
    model = backbone()
    torch.nn.init.zeros_(model.visual.transformer.resblocks[0].ln_1.weight)
    with pytest.raises(ManifestMismatchError, match="backbone is"):
        record(model, images, path=tmp_path / "a", shard_images=5)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("mine")
    with pytest.raises(ManifestMismatchError, match="not empty"):
        record(model, images, path=tmp_path / "b")


def test_reopened_recording_asks_for_its_own_network(images, tmp_path):
    model = backbone()
    made = record(model, images, path=tmp_path / "a")
    opened = open_activations(tmp_path / "a", model)
    assert torch.equal(opened.batch().x, made.batch().x)
    assert opened.manifest == made.manifest
    alone = open_activations(tmp_path / "a")
    with pytest.raises(ValueError, match="outputs are not stored; open the recording with"):
        alone.batch()
    record(model, images, path=tmp_path / "b", store="both")
    assert open_activations(tmp_path / "b").batch().x.shape == (13 * 17, 3, 32)
    torch.nn.init.ones_(model.visual.transformer.resblocks[2].mlp.c_proj.bias)
    with pytest.raises(TowerMismatchError, match="mlp_sha256"):
        open_activations(tmp_path / "a", model)


def test_hook_mismatch_is_refused(images, tmp_path):
    model = backbone()
    record(model, images, path=tmp_path / "a")
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    manifest["backbone"]["inputs"] = "resid.mid"
    (tmp_path / "a" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(TowerMismatchError, match=r"inputs is 'mlp.input' here, was 'resid.mid'"):
        open_activations(tmp_path / "a", model)


def test_weights_changed_after_the_recording_are_noticed(images):
    model = backbone()
    data = record(model, images)
    bias = model.visual.transformer.resblocks[1].mlp.c_fc.bias
    with torch.no_grad():
        bias.add_(1)
    with pytest.raises(TowerMismatchError, match="changed after the recording"):
        data.batch(torch.arange(3))
    with torch.no_grad():
        bias.sub_(1)
        bias.copy_(backbone().visual.transformer.resblocks[1].mlp.c_fc.bias)
    assert data.batch(torch.arange(3)).x.shape == (3, 3, 32)


def test_damaged_files_are_refused(images, tmp_path):
    record(backbone(), images, path=tmp_path / "a")
    file = tmp_path / "a" / "inputs-00000.npy"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"inputs-00000\.npy is missing or damaged"):
        open_activations(tmp_path / "a")
    np.save(file, np.zeros((2, 3), dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="missing or damaged"):
        open_activations(tmp_path / "a")


def test_manifest_says_what_and_how(images, tmp_path):
    labelled = torch.utils.data.TensorDataset(images, torch.arange(13))
    data = record(backbone(), labelled, path=tmp_path / "a", shard_images=5)
    manifest = data.manifest
    assert manifest["shape"] == [13, 3, 17, 32]
    assert manifest["backbone"]["outputs"] == "mlp.output"
    assert len(manifest["backbone"]["mlp_sha256"]) == 3
    assert manifest["token_type"] == [0] + [1] * 16
    assert [shard["images"] for shard in manifest["shards"]] == [5, 5, 3]
    assert {"probinterp", "torch", "open_clip_torch", "timm"} <= manifest["versions"].keys()
    assert torch.equal(data.labels, torch.arange(13))


def test_registers_have_a_type_of_their_own():
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(
        img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2, reg_tokens=2, num_classes=0
    )
    images = torch.randn(3, 3, 16, 16)
    assert record(model, images).batch().token_type.tolist() == ([0] + [1] * 16) * 3
    data = record(model, images, tokens=["cls", "patch", "register"])
    assert data.batch().token_type.tolist() == ([0, 2, 2] + [1] * 16) * 3
    assert data.of_type("register").batch().inputs.shape == (6, 2, 32)


@pytest.mark.parametrize("mixed", [False, True])
def test_half_precision_tower_computes_in_its_own_type(images, mixed):
    if mixed:  # as create_model(precision="bf16") makes it: embeddings stay in float32
        model = open_clip.CLIP(32, VISION, TEXT, cast_dtype=torch.bfloat16)
        convert_weights_to_lp(model, dtype=torch.bfloat16)
    else:
        model = backbone().to(torch.bfloat16)
    batch = record(model, images, dtype=torch.float16).batch()
    mlp = resolve(model).mlps[0]
    with torch.no_grad():
        assert torch.equal(batch.x[:, 0], mlp(batch.inputs[:, 0].bfloat16()).float())
    assert batch.x.dtype == torch.float32


def test_pictures_of_a_folder(tmp_path):
    generator = np.random.default_rng(0)
    for name in ("b/2.png", "a/1.png", "b/1.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pixels = generator.integers(0, 255, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("no picture")

    def preprocess(picture):
        return torch.from_numpy(np.array(picture.resize((16, 16)))).permute(2, 0, 1).float() / 255

    data = record(backbone(), tmp_path, preprocess=preprocess)
    assert data.n_images == 3
    assert data.labels.tolist() == [0, 1, 1]
    parallel = record(backbone(), str(tmp_path), preprocess=preprocess, batch_size=1)
    torch.testing.assert_close(data.batch().inputs, parallel.batch().inputs)
    theirs = record(backbone(), ImageFolder(tmp_path, transform=preprocess))
    assert torch.equal(theirs.batch().inputs, data.batch().inputs)
    assert torch.equal(theirs.labels, data.labels)
    pictures = record(backbone(), ImageFolder(tmp_path), preprocess=preprocess)
    assert torch.equal(pictures.batch().inputs, data.batch().inputs)
    with pytest.raises(ValueError, match="need preprocess="):
        record(backbone(), tmp_path)


def test_worker_processes_read_the_same(images):
    source = image_source(Stopping(images))
    read = list(image_batches(source, range(3, 13), 4, num_workers=2))
    assert torch.equal(torch.cat([pixels for pixels, _ in read]), images[3:])
    assert torch.cat([labels for _, labels in read]).tolist() == [*range(3, 10), 0, 1, 2]


class TenPictures:
    def __len__(self):
        return 10

    def __getitem__(self, i):
        return Image.new("RGB", (16, 16)), 0


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda x: x[:, :, :8], ValueError, r"have shape \(3, 8, 16\), the tower expects \(3, 16"),
        (lambda x: (x * 255).to(torch.uint8), ValueError, "must be preprocessed: floats"),
        (lambda x: x[:0], ValueError, "there are no images"),
        (lambda x: torch.where(x == x[7, 0, 0, 0], torch.nan, x), ValueError, "image 7 has NaN"),
        (lambda x: torch.utils.data.DataLoader(Stopping(x)), TypeError, "loader's dataset"),
        (lambda x: iter(x), TypeError, "images must be an array"),
        (lambda x: TenPictures(), TypeError, "image 0 is a Image, not a tensor: give preprocess="),
        (lambda x: "/nowhere", FileNotFoundError, "/nowhere is not a folder"),
    ],
    ids=["size", "integers", "empty", "NaN", "loader", "iterator", "pictures", "folder"],
)
def test_images_that_cannot_be_used_are_refused(images, make, error, match):
    with pytest.raises(error, match=match):
        record(backbone(), make(images), preprocess=None)


def test_labels_must_fit(images):
    with pytest.raises(ValueError, match="labels must be 13 integers"):
        record(backbone(), images, labels=[1, 2])
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        record(backbone(), images, batch_size=0)
    with pytest.raises(ValueError, match="store must be"):
        record(backbone(), images, store="outputs")
    with pytest.raises(ValueError, match="dtype must be one of"):
        record(backbone(), images, dtype=torch.float64)
