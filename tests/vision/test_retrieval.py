import open_clip
import pytest
import torch

from probinterp.models import CrossLayerTranscoder
from probinterp.models.activation_priors import AbsTopK, ReLUTopK
from probinterp.vision import record_activations
from probinterp.vision.retrieval import feature_card, strongest_features, top_images

TEXT = {"context_length": 8, "vocab_size": 32, "width": 32, "heads": 2, "layers": 1}
VISION = {"image_size": (16, 24), "layers": 2, "width": 32, "head_width": 16, "patch_size": 4}
L, D, H, N, T = 2, 32, 20, 23, 25
ROWS, COLUMNS = 4, 6


@pytest.fixture(scope="module")
def data():
    torch.manual_seed(0)
    model = open_clip.CLIP(32, VISION, TEXT)
    pixels = torch.randn(N, 3, 16, 24)
    return record_activations(model, pixels, labels=list(range(N)), progress=False)


def transcoder(activation=None, **options):
    torch.manual_seed(1)
    clt = CrossLayerTranscoder(L, D, H, activation=activation or ReLUTopK(4), **options).eval()
    with torch.no_grad():
        for parameter in clt.parameters():
            parameter.normal_(0, 0.3)
    return clt


def all_scores(clt, data):
    """Scores (N, T, L, H) of everything at once."""
    with torch.no_grad():
        z = clt.encode(data.batch().inputs).unflatten(0, (N, T))
        return z * clt.decoder_norm


@pytest.mark.parametrize("activation", [ReLUTopK(4), AbsTopK(4)], ids=["relu", "abs"])
def test_best_images_are_those_of_a_full_sort(data, activation):
    clt = transcoder(activation)
    with torch.no_grad():
        clt.encoder.bias.mul_(15)  # some features are active in few images
    found = top_images(clt, data, n=5, batch_size=4)
    scores = all_scores(clt, data)
    largest = scores.abs().amax(1).permute(1, 2, 0)  # (L, H, N)
    expected, order = largest.sort(descending=True, stable=True)
    expected, order = expected[..., :5].clamp_min(0), order[..., :5]
    torch.testing.assert_close(found.score, expected, rtol=1e-5, atol=1e-6)
    active = expected > 0
    assert (found.image[~active] == -1).all()
    assert torch.equal(found.image[active], order[active])
    assert torch.equal(found.n_images, (largest > 0).sum(2))
    rate = (scores != 0).double().mean((0, 1))
    torch.testing.assert_close(found.firing_rate, rate)
    assert 0 < (~active).sum() < active.numel()


def test_number_of_images_in_memory_changes_nothing(data):
    clt = transcoder()
    one, all_ = (top_images(clt, data, n=3, batch_size=b) for b in (1, N))
    assert torch.equal(one.image, all_.image)
    some = top_images(clt, data, n=3, layers=[1])
    assert torch.equal(some.image[0], all_.image[1])
    assert some.layers == (1,)


def test_part_of_the_images_keeps_their_numbers(data):
    clt = transcoder()
    part = data.images([7, 20, 3])
    found = top_images(clt, part, n=9)
    assert set(found.image.unique().tolist()) == {-1, 3, 7, 20}


@pytest.mark.parametrize("cross_layer", [True, False])
def test_card_shows_where_the_feature_is_active(data, cross_layer):
    clt = transcoder(cross_layer=cross_layer)
    top = top_images(clt, data, n=4)
    feature = int(top.n_images[0].argmax())
    card = feature_card(clt, data, top, 0, feature)
    scores = all_scores(clt, data)[card.images, :, 0, feature]
    torch.testing.assert_close(card.heat_maps, scores[:, 1:].unflatten(1, (ROWS, COLUMNS)))
    torch.testing.assert_close(card.class_token, scores[:, 0])
    torch.testing.assert_close(card.scores, scores.amax(1))
    assert torch.equal(card.labels, card.images)  # labelled by their number
    for target in range(L):
        if target == 0 or cross_layer:
            expected = clt.decoder(0, target)[feature].norm().item()
        else:
            expected = 0
        assert card.target_norms[target].item() == pytest.approx(expected)
    assert feature_card(clt, data, top, 1, 0).target_norms[0] == 0


def test_card_of_a_feature_that_is_never_active(data):
    clt = transcoder()
    with torch.no_grad():
        clt.encoder.bias[1, 7] = -1e6
    top = top_images(clt, data, n=4)
    card = feature_card(clt, data, top, 1, 7)
    assert card.heat_maps.shape == (0, ROWS, COLUMNS)
    assert card.images.shape == card.scores.shape == (0,)
    assert card.firing_rate == 0


def test_features_of_an_image_are_those_of_a_full_sort(data):
    clt = transcoder()
    found = strongest_features(clt, data, 11, n=3)
    largest = all_scores(clt, data)[11].amax(0)
    for layer, strong in enumerate(found):
        values, order = largest[layer].sort(descending=True, stable=True)
        assert strong.layer == layer
        assert torch.equal(strong.features, order[:3])
        torch.testing.assert_close(strong.scores, values[:3])
    everything = strongest_features(clt, data, 11, n=H, layers=[1])[0]
    assert (everything.scores > 0).all()
    assert len(everything.features) == int((largest[1] > 0).sum())


def test_what_is_missing_is_named(data):
    clt = transcoder()
    top = top_images(clt, data, n=4, layers=[0])
    with pytest.raises(ValueError, match="feature 0 of layer 1 was not looked at"):
        feature_card(clt, data, top, 1, 0)
    with pytest.raises(ValueError, match=r"images \[99\] are not among the 23"):
        strongest_features(clt, data, 99)
    with pytest.raises(ValueError, match="all 24 patches of an image, 0 were recorded"):
        feature_card(clt, data.of_type("cls"), top, 0, int(top.n_images[0].argmax()))
    with pytest.raises(ValueError, match=r"0\.\.1, got \[2\]"):
        top_images(clt, data, layers=[2])
    with pytest.raises(ValueError, match="n must be at least 1"):
        top_images(clt, data, n=0)
