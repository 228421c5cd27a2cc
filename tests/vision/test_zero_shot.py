import hashlib
import json

import open_clip
import pytest
import torch
from open_clip.zero_shot_classifier import build_zero_shot_classifier
from torch import nn

from probinterp.vision import self_discordance, text_embeddings, tiny_clip, zero_shot
from probinterp.vision.tiny_clip import CLASS_NAMES, TEMPLATES, digits

VISION = {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 4}
TEXT = {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}


@pytest.fixture(scope="module")
def clip():
    return tiny_clip()


@pytest.fixture(scope="module")
def heldout():
    return digits().heldout


def by_hand(clip, images):
    """The definition, one class and one template after the other."""
    classes = []
    with torch.no_grad():
        for name in CLASS_NAMES:
            prompts = [clip.tokenizer([t.format(name)]) for t in TEMPLATES]
            vectors = [clip.model.encode_text(p)[0] for p in prompts]
            mean = sum(v / v.norm() for v in vectors) / len(vectors)
            classes.append(mean / mean.norm())
        features = clip.model.encode_image(images)
        features = features / features.norm(dim=1, keepdim=True)
        return clip.model.logit_scale.exp() * features @ torch.stack(classes).T


def test_logits_are_scaled_cosines_with_the_mean_prompt(clip, heldout):
    result = zero_shot(clip.model, heldout.images, CLASS_NAMES, TEMPLATES, labels=heldout.labels)
    expected = by_hand(clip, heldout.images)
    torch.testing.assert_close(result.logits, expected, atol=1e-4, rtol=1e-5)
    assert torch.equal(result.predictions, expected.argmax(1))
    largest = expected.sort(dim=1, descending=True).values
    torch.testing.assert_close(result.margins, largest[:, 0] - largest[:, 1], atol=1e-4, rtol=1e-5)
    assert torch.equal(result.correct, expected.argmax(1) == heldout.labels)
    assert result.accuracy == result.correct.double().mean().item()


def test_text_embeddings_are_those_of_open_clip(clip):
    ours = text_embeddings(clip.model, CLASS_NAMES, TEMPLATES).embeddings
    theirs = build_zero_shot_classifier(clip.model, clip.tokenizer, CLASS_NAMES, TEMPLATES)
    torch.testing.assert_close(ours, theirs.T)


def test_hashes_name_what_went_in(clip, heldout):
    images = heldout.images[:9]
    result = zero_shot(clip.model, images, CLASS_NAMES, TEMPLATES, batch_size=4)
    json_list = json.dumps(list(TEMPLATES)).encode()
    assert result.template_hash == hashlib.sha256(json_list).hexdigest()
    assert result.labels is None
    assert result.correct is None
    with pytest.raises(ValueError, match="no labels"):
        _ = result.accuracy
    again = zero_shot(clip.model, images, CLASS_NAMES, TEMPLATES, batch_size=9)
    assert again.image_hash == result.image_hash
    changed = images.clone()
    changed[3, 0, 0, 0] += 1e-6
    other = zero_shot(clip.model, changed, CLASS_NAMES, TEMPLATES[:2])
    assert other.image_hash != result.image_hash
    assert other.template_hash != result.template_hash
    assert other.class_hash == result.class_hash
    assert other.preprocess_hash == result.preprocess_hash
    assert len(other.preprocess_hash) == 64


def test_loaders_give_the_same_as_arrays(clip, heldout):
    array = zero_shot(clip.model, *heldout[:1], CLASS_NAMES, TEMPLATES, labels=heldout.labels)
    pairs = torch.utils.data.TensorDataset(*heldout)
    loader = torch.utils.data.DataLoader(pairs, batch_size=50)
    for images in (pairs, loader):
        result = zero_shot(clip.model, images, CLASS_NAMES, TEMPLATES)
        assert torch.equal(result.predictions, array.predictions)
        assert torch.equal(result.labels, heldout.labels)
        assert result.image_hash == array.image_hash
    bare = zero_shot(clip.model, iter(heldout.images.split(100)), CLASS_NAMES, TEMPLATES)
    assert bare.labels is None
    assert torch.equal(bare.predictions, array.predictions)


def test_texts_can_be_embedded_once_but_not_confused(clip, heldout):
    text = text_embeddings(clip.model, CLASS_NAMES, TEMPLATES)
    images = heldout.images[:5]
    given = zero_shot(clip.model, images, CLASS_NAMES, TEMPLATES, text=text)
    fresh = zero_shot(clip.model, images, CLASS_NAMES, TEMPLATES)
    assert torch.equal(given.logits, fresh.logits)
    with pytest.raises(ValueError, match="other class names or templates"):
        zero_shot(clip.model, images, CLASS_NAMES, TEMPLATES[:1], text=text)


class TwoEqualClasses(nn.Module):
    """Classes 1 and 2 have the same embedding, class 0 the opposite one."""

    def __init__(self, bias):
        super().__init__()
        inner = open_clip.CLIP(2, VISION, TEXT)
        self.visual = inner.visual
        self.logit_scale = nn.Parameter(torch.tensor(0.0))
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(bias))

    def encode_image(self, images):
        return torch.tensor([[3.0, 0.0]]).expand(len(images), -1)

    def encode_text(self, tokens):
        return torch.where(tokens[:, :1] == 0, -1.0, 1.0) * torch.tensor([[1.0, 0.0]])


@pytest.mark.parametrize("bias", [None, -10.0])
def test_ties_go_to_the_first_class(bias):
    def tokenizer(texts):
        return torch.tensor([[int(text)] for text in texts])

    result = zero_shot(
        TwoEqualClasses(bias),
        torch.zeros(3, 3, 16, 16),
        ["0", "1", "2"],
        ["{}"],
        labels=[1, 2, -1],
        tokenizer=tokenizer,
    )
    assert result.logits[0].tolist() == [(bias or 0) - 1, (bias or 0) + 1, (bias or 0) + 1]
    assert result.predictions.tolist() == [1, 1, 1]
    assert result.margins.tolist() == [0, 0, 0]
    assert result.correct.tolist() == [True, False]  # the third has no label


def test_network_against_itself(clip, heldout):
    same = self_discordance(clip.model, heldout.images, CLASS_NAMES, TEMPLATES)
    assert same.share == 0.0
    assert same.largest_drift < 1e-3
    with pytest.raises(ValueError, match="readable by number"):
        self_discordance(clip.model, iter([heldout.images]), CLASS_NAMES, TEMPLATES)


def test_discordance_of_a_network_that_depends_on_its_batch(clip, heldout):
    class Unsteady(nn.Module):
        def __init__(self):
            super().__init__()
            self.visual, self.logit_scale = clip.model.visual, clip.model.logit_scale
            self.encode_text = clip.model.encode_text

        def encode_image(self, images):
            features = clip.model.encode_image(images)
            features[0] = -features[0]  # the first image of each batch
            return features

    images = heldout.images[:40]
    text = text_embeddings(clip.model, CLASS_NAMES, TEMPLATES)
    found = self_discordance(
        Unsteady(), images, CLASS_NAMES, TEMPLATES, text=text, batch_sizes=(20, 8)
    )
    assert found.share == 5 / 40  # images 8, 16, 20, 24, 32; image 0 is wrong in both


@pytest.mark.parametrize(
    ("names", "templates", "match"),
    [
        (["a", "a"], ["{}"], "must be different"),
        ("ab", ["{}"], "class_names must be a list"),
        (["a"], [], "templates must be a list"),
        (["a"], ["a photo"], "need {} where the class name goes"),
    ],
)
def test_texts_are_checked(clip, heldout, names, templates, match):
    with pytest.raises(ValueError, match=match):
        zero_shot(clip.model, heldout.images, names, templates)


def test_network_without_text_tower_or_tokenizer(clip, heldout):
    with pytest.raises(TypeError, match="has no text tower"):
        zero_shot(clip.model.visual, heldout.images, CLASS_NAMES, TEMPLATES)
    bare = open_clip.CLIP(32, VISION, TEXT)
    with pytest.raises(ValueError, match="give tokenizer="):
        text_embeddings(bare, CLASS_NAMES, TEMPLATES)
    tokenizer = open_clip.SimpleTokenizer(context_length=8)
    assert text_embeddings(bare, ["a", "b"], ["{}"], tokenizer=tokenizer).embeddings.shape == (
        2,
        32,
    )


@pytest.mark.parametrize("shift", [100, -5])
def test_labels_that_are_no_class_are_refused(clip, heldout, shift):
    labels = heldout.labels[:20] + shift
    with pytest.raises(ValueError, match=r"labels must be -1 \(none\) to 9 for 10 class names"):
        zero_shot(clip.model, heldout.images[:20], CLASS_NAMES, TEMPLATES, labels=labels)
