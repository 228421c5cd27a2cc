import math

import open_clip
import pytest
import torch
from open_clip.model import CustomTextCLIP
from timm.layers import LayerScale
from torch import nn
from torch.nn.functional import normalize

from probinterp.models import CrossLayerTranscoder
from probinterp.models.activation_priors import AbsTopK
from probinterp.vision import UnsupportedTowerError, resolve
from probinterp.vision.contributions import Contributions
from probinterp.vision.faithfulness import (
    all_subsets,
    attributed_order,
    subset_correctness,
    without_each,
)
from probinterp.vision.faithfulness_curves import faithfulness_curves, orders_of
from probinterp.vision.final_target import embeddings_of_sets, final_target
from probinterp.vision.replacement import (
    cascade_of,
    reaches_embedding,
    replace_mlps,
)
from probinterp.vision.zero_shot import TextEmbeddings

TEXT = {"context_length": 8, "vocab_size": 32, "width": 32, "heads": 2, "layers": 1}
VISION = {"image_size": 16, "layers": 3, "width": 32, "head_width": 16, "patch_size": 4}
L, D, H, C = 3, 32, 48, 5


def own(**changes):
    torch.manual_seed(0)
    return open_clip.CLIP(32, VISION | changes, TEXT).eval()


def with_registers():
    """A timm tower with registers and LayerScale inside a CLIP network."""
    torch.manual_seed(0)
    vision = {
        "timm_model_name": "vit_small_patch14_reg4_dinov2",
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": 518,
    }
    model = CustomTextCLIP(32, vision, TEXT)
    model.visual.trunk.set_input_size(img_size=(28, 28))
    model.visual.trunk.blocks = model.visual.trunk.blocks[:L]
    for part in model.modules():
        if isinstance(part, LayerScale):
            nn.init.constant_(part.gamma, 0.7)
    return model.eval()


TOWERS = {
    "class token": own,
    "LayerScale": lambda: own(ls_init_value=0.7),
    "average": lambda: own(pool_type="avg"),
    "attention": lambda: own(attentional_pool=True, attn_pooler_heads=2),
    "registers": with_registers,
}


def images(backbone, n=6):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, *resolve(backbone).image_size, generator=generator)


def transcoder(width=D, **options):
    torch.manual_seed(2)
    clt = CrossLayerTranscoder(L, width, H, activation=AbsTopK(6), **options).eval()
    with torch.no_grad():
        for parameter in clt.parameters():
            parameter.normal_(0, 0.2)
    return clt


def text():
    """Directions in which embeddings of a random network differ."""
    backbone = own()
    with torch.no_grad():
        features = backbone.encode_image(images(backbone, 20))
    embeddings = normalize((features - features.mean(0))[:C], dim=1)
    return TextEmbeddings(embeddings, tuple("abcde"), "", "")


def labels(n=6):
    return torch.arange(n) % C


SETS = [(), (0,), (1, 2), (0, 2), (0, 1, 2)]


PARTS = [(tower, tokens) for tower in TOWERS for tokens in ("cls", "all")] + [
    (tower, "patch") for tower in ("average", "attention", "registers")
]


@pytest.mark.parametrize(("tower", "tokens"), PARTS)
@torch.no_grad()
def test_parts_of_the_last_layer_give_the_embeddings_of_a_whole_run(tower, tokens):
    backbone = TOWERS[tower]()
    resolved = resolve(backbone)
    clt, pixels = transcoder(resolved.width, skip=True), images(backbone, 3)
    parts = final_target(cascade_of(resolved, clt, tokens=tokens), pixels)
    kept = torch.tensor([[i in subset for i in range(L)] for subset in SETS])
    found = embeddings_of_sets(resolved, parts, kept, pixels)
    for embedding, subset in zip(found, SETS, strict=True):
        with replace_mlps(backbone, clt, keep=subset, scope="final", tokens=tokens):
            expected = resolved.encode_image(pixels)
        torch.testing.assert_close(embedding, expected, rtol=1e-4, atol=1e-5)
    changed = (found[0] - found[1]).abs().max().item()
    assert changed > 1e-3 if reaches_embedding(resolved, [L - 1], tokens) else changed == 0.0
    assert all("forward" not in vars(part) for part in backbone.modules())


def expected_correct(backbone, clt, pixels, subset, scope, tokens):
    with torch.no_grad(), replace_mlps(backbone, clt, keep=subset, scope=scope, tokens=tokens):
        features = normalize(backbone.encode_image(pixels), dim=1)
    return (features @ text().embeddings.mT).argmax(1) == labels(len(pixels))


@pytest.mark.parametrize(("scope", "tokens"), [("final", "cls"), ("all", "cls"), ("all", "patch")])
@pytest.mark.parametrize("cross_layer", [True, False])
def test_correctness_of_every_subset_is_that_of_its_own_run(scope, tokens, cross_layer):
    backbone, clt = own(), transcoder(cross_layer=cross_layer)
    pixels = images(backbone, 40)
    subsets = [s for size in range(L + 1) for s in all_subsets(L, size)]
    found = subset_correctness(
        backbone,
        clt,
        pixels,
        text(),
        subsets=subsets,
        labels=labels(40),
        scope=scope,
        tokens=tokens,
        batch_size=16,
    )
    assert found.correct.shape == (8, 40)
    for row, subset in zip(found.correct, subsets, strict=True):
        assert torch.equal(row, expected_correct(backbone, clt, pixels, subset, scope, tokens))
    assert torch.equal(found.replaced, found.of(range(L)))
    with torch.no_grad():
        features = normalize(backbone.encode_image(pixels), dim=1)
    assert torch.equal(found.network, (features @ text().embeddings.mT).argmax(1) == labels(40))
    assert found.accuracy[3].item() == found.correct[3].sum().item() / 40
    if cross_layer:
        assert len({row.numpy().tobytes() for row in found.correct}) > 1  # sets matter
    with pytest.raises(KeyError, match=r"\(0, 3\) are not among the 8"):
        found.of([3, 0])


def test_all_495_subsets_of_twelve_layers():
    assert len(all_subsets(12, 4)) == 495
    assert len(set(all_subsets(12, 4))) == math.comb(12, 4)
    assert without_each(3) == ((1, 2), (0, 2), (0, 1))
    with pytest.raises(ValueError, match=r"size must be in 0\.\.3"):
        all_subsets(3, 4)


def scores(column):
    matrix = torch.zeros(L, L, dtype=torch.float64)
    matrix[:, -1] = torch.tensor(column, dtype=torch.float64)
    nothing = torch.zeros(0)
    norm = matrix.flip(0)
    return Contributions(matrix, nothing, nothing, norm, nothing, 1, nothing, "all", False)


def test_orders_are_by_the_column_of_the_last_layer():
    orders = orders_of(scores([0.3, -0.1, 0.8]), n_random=4, seed=1)
    assert orders["contribution"] == (2, 0, 1)
    assert orders["reverse"] == (1, 0, 2)
    assert orders["norm"] == (0, 2, 1)
    assert orders == orders_of(scores([0.3, -0.1, 0.8]), n_random=4, seed=1)
    assert len(orders) == 7
    with pytest.raises(ValueError, match="no source writes"):
        attributed_order(scores([math.nan] * 3))


@pytest.mark.parametrize("scope", ["final", "all"])
def test_curves_are_the_correctness_of_nested_sets(scope):
    backbone, clt = own(), transcoder()
    pixels = images(backbone, 20)
    orders = orders_of(scores([0.3, -0.1, 0.8]), n_random=2)
    options = {"labels": labels(20), "scope": scope, "tokens": "cls"}
    curves = faithfulness_curves(backbone, clt, pixels, text(), orders, **options)
    assert set(curves.deletion) == set(curves.insertion) == set(orders)
    for step, kept in enumerate([(0, 1, 2), (0, 1), (1,), ()]):
        expected = expected_correct(backbone, clt, pixels, kept, scope, "cls")
        assert torch.equal(curves.deletion["contribution"][step], expected)
    for step, kept in enumerate([(), (2,), (0, 2), (0, 1, 2)]):
        expected = expected_correct(backbone, clt, pixels, kept, scope, "cls")
        assert torch.equal(curves.insertion["contribution"][step], expected)
    assert torch.equal(curves.deletion["random 1"][0], curves.insertion["random 1"][-1])
    torch.testing.assert_close(curves.kept_fraction, torch.tensor([1, 2 / 3, 1 / 3, 0]).double())
    with pytest.raises(ValueError, match="'half' must have each of the 3 sources once"):
        faithfulness_curves(backbone, clt, pixels, text(), {"half": [0, 1]}, **options)


def test_questions_that_make_no_sense_are_refused():
    backbone, clt = own(), transcoder()
    pixels = images(backbone)

    def ask(**options):
        options = {"subsets": [(0,)], "labels": labels()} | options
        return subset_correctness(backbone, clt, pixels, text(), **options)

    with pytest.raises(ValueError, match="patch tokens of the last layer never reach"):
        ask(tokens="patch")
    with pytest.raises(ValueError, match="every image needs a label"):
        ask(labels=None)
    with pytest.raises(ValueError, match=r"0\.\.2, got \[7\]"):
        ask(subsets=[(7,)])


def test_a_last_block_that_is_no_sum_is_refused():
    backbone, clt = own(), transcoder()
    last = backbone.visual.transformer.resblocks[-1]

    class Doubled(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.block, self.ln_2, self.mlp = block, block.ln_2, block.mlp

        def forward(self, x, attn_mask=None):
            return 2 * self.block(x)

    backbone.visual.transformer.resblocks[-1] = Doubled(last)
    options = {"subsets": [(0,)], "labels": labels()}
    with pytest.raises(UnsupportedTowerError, match=r"no sum .* use scope='all'"):
        subset_correctness(backbone, clt, images(backbone), text(), **options)
    subset_correctness(backbone, clt, images(backbone), text(), scope="all", **options)
    assert all("forward" not in vars(part) for part in backbone.modules())
