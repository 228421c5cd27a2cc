import pytest
import torch

from probinterp import fit
from probinterp.models import CrossLayerTranscoder
from probinterp.models.activation_priors import ReLUTopK
from probinterp.models.transcoder_baselines import IdentityProxy, MeanProxy
from probinterp.vision import digits, record_activations, resolve, tiny_clip, zero_shot
from probinterp.vision.contributions import contributions
from probinterp.vision.evaluation import evaluate_replacement, windows_of
from probinterp.vision.faithfulness import all_subsets, attributed_order, subset_correctness
from probinterp.vision.faithfulness_curves import faithfulness_curves, orders_of
from probinterp.vision.replacement import replace_mlps
from probinterp.vision.tiny_clip import CLASS_NAMES, TEMPLATES
from probinterp.vision.zero_shot import text_embeddings

TEXTS = (CLASS_NAMES, TEMPLATES)


@pytest.fixture(scope="module")
def network():
    return tiny_clip().model


@pytest.fixture(scope="module")
def text(network):
    return text_embeddings(network, *TEXTS)


@pytest.fixture(scope="module")
def heldout():
    return digits().heldout


@pytest.fixture(scope="module")
def proxy(network):
    """A small transcoder after a short training, with the record of its tower."""
    torch.manual_seed(0)
    train = digits().train.images[:400]
    data = record_activations(network, train, store="both", progress=False)
    clt = CrossLayerTranscoder(
        4, 64, 128, activation=ReLUTopK(8), metadata={"backbone": data.manifest["backbone"]}
    )
    fit(clt, data, max_epochs=12, batch_size=512, seed=0, progress=False)
    return clt.eval()


def test_rows_are_those_of_zero_shot_inside_the_context(network, text, heldout, proxy):
    images, labels = heldout.images[:100], heldout.labels[:100]
    found = evaluate_replacement(network, proxy, images, labels, *TEXTS, text=text)
    assert len(found.windows) == 4 * 3
    options = {"labels": labels, "text": text}
    plain = zero_shot(network, images, *TEXTS, **options)
    assert torch.equal(found.correct, plain.correct)
    for layers, tokens in [((0, 1, 2, 3), "all"), ((2, 3), "cls"), ((1, 2, 3), "patch")]:
        window = found.window(layers, tokens)
        with replace_mlps(network, proxy, layers=layers, tokens=tokens):
            expected = zero_shot(network, images, *TEXTS, **options)
        assert torch.equal(window.result.logits, expected.logits)
        assert torch.equal(window.correct, expected.correct)
        assert (expected.logits - plain.logits).abs().max() == window.drift.largest.max()
        assert window.result.image_hash == plain.image_hash
    assert torch.equal(zero_shot(network, images, *TEXTS, **options).logits, plain.logits)
    row = found.rows()[2]
    window = found.windows[2]
    assert (row["layers"], row["tokens"], row["n_images"]) == ([0, 1, 2, 3], "all", 100)
    change = row["gained"] - row["lost"]
    assert change == int(window.correct.sum()) - int(found.correct.sum())
    with pytest.raises(KeyError, match=r"layers \[0\] with all tokens"):
        found.window([0], "all")


def test_last_patches_are_marked_as_invisible(network, text, heldout, proxy):
    images, labels = heldout.images[:50], heldout.labels[:50]
    found = evaluate_replacement(
        network, proxy, images, labels, *TEXTS, text=text, windows=[[3]], tokens=["patch", "cls"]
    )
    patch, cls = found.windows
    assert (patch.visible, cls.visible) == (False, True)
    assert patch.drift.largest.max() == 0
    assert cls.drift.largest.max() > 0


def test_the_mlps_and_their_means_bound_every_proxy(network, text, heldout, proxy):
    images, labels = heldout.images, heldout.labels
    tower = resolve(network)
    window = {"windows": [range(4)], "tokens": ["all"]}
    data = record_activations(network, images, store="both", progress=False)

    def run(clt):
        return evaluate_replacement(
            network, clt, images, labels, *TEXTS, text=text, data=data, **window
        )

    same, fitted = run(IdentityProxy(tower.mlps, 64)), run(proxy)
    mean = run(MeanProxy.fitted([data.batch()]))
    assert same.windows[0].drift.largest.max() == 0
    assert (1 - same.reconstruction["patch"].r2()).abs().max() < 1e-10
    accuracy = [f.windows[0].result.accuracy for f in (same, fitted, mean)]
    assert accuracy[0] == same.network.accuracy >= 0.97
    assert accuracy[0] - accuracy[1] < 0.1
    assert accuracy[2] < accuracy[1] - 0.2
    for kind in ("cls", "patch"):
        assert (fitted.reconstruction[kind].r2() > mean.reconstruction[kind].r2()).all()
    assert fitted.reconstruction["cls"].n_tokens.sum() == len(images)


def test_final_scope_of_subsets_agrees_with_whole_runs(network, text, heldout, proxy):
    images, labels = heldout.images[:60], heldout.labels[:60]
    data = record_activations(network, images, progress=False)
    scores = contributions(proxy, data, tokens="cls")
    assert (scores.matrix.sum(0) - 1).abs().max() < 1e-5
    order = attributed_order(scores)
    found = subset_correctness(
        network, proxy, images, text, subsets=all_subsets(4, 2), labels=labels, tokens="cls"
    )
    best = tuple(sorted(order[:2]))
    with replace_mlps(network, proxy, keep=best, scope="final", tokens="cls"):
        expected = zero_shot(network, images, *TEXTS, text=text, labels=labels)
    assert torch.equal(found.of(best), expected.correct)
    curves = faithfulness_curves(
        network,
        proxy,
        images,
        text,
        orders_of(scores, n_random=5),
        labels=labels,
        tokens="cls",
    )
    assert torch.equal(curves.deletion["contribution"][2], found.of(order[2:]))


def test_windows_are_checked(network):
    tower = resolve(network)
    assert windows_of(tower) == [(0, 1, 2, 3), (1, 2, 3), (2, 3), (3,)]
    with pytest.raises(ValueError, match=r"0\.\.3"):
        windows_of(tower, [[2, 4]])


def test_images_without_labels_are_refused(network, text, heldout, proxy):
    with pytest.raises(ValueError, match="need labels"):
        evaluate_replacement(network, proxy, heldout.images[:3], None, *TEXTS, text=text)
