import copy

import open_clip
import pytest
import torch
from open_clip.model import CustomTextCLIP
from timm.layers import GluMlp, LayerScale
from timm.models.vision_transformer import ResPostBlock
from timm.models.vision_transformer import VisionTransformer as TimmTransformer
from torch import nn

from probinterp.vision import TowerMismatchError, UnsupportedTowerError, resolve
from probinterp.vision.capture import capturing, evaluating, recompute, verify_hooks

TEXT = {"context_length": 8, "vocab_size": 32, "width": 32, "heads": 2, "layers": 1}
VISION = {"image_size": 16, "layers": 3, "width": 32, "head_width": 16, "patch_size": 4}


def own(**changes):
    return open_clip.CLIP(32, VISION | changes, TEXT, quick_gelu=changes.pop("quick", False))


def timm_tower(**changes):
    """A small transformer of timm, alone."""
    shape = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return TimmTransformer(**(shape | {"num_classes": 0} | changes))


def dinov2():
    """A timm tower inside a CLIP network, LayerScale at 1 so that its MLPs matter."""
    vision = {
        "timm_model_name": "vit_small_patch14_dinov2",
        "timm_pool": "token",
        "timm_proj": "linear",
        "image_size": 518,
    }
    model = CustomTextCLIP(32, vision, TEXT)
    model.visual.trunk.set_input_size(img_size=(56, 56))
    for part in model.modules():
        if isinstance(part, LayerScale):
            nn.init.ones_(part.gamma)
    return model


TOWERS = {  # network, prefix tokens, class tokens, pooling
    "open_clip": (own, 1, 1, "cls"),
    "open_clip average": (lambda: own(pool_type="avg"), 1, 1, "avg"),
    "open_clip attention": (lambda: own(attentional_pool=True, attn_pooler_heads=2), 1, 1, "map"),
    "open_clip custom block": (lambda: own(scale_fc=True), 1, 1, "cls"),
    "open_clip LayerScale": (lambda: own(ls_init_value=1.0), 1, 1, "cls"),
    "ViT-B-32": (lambda: open_clip.create_model("ViT-B-32"), 1, 1, "cls"),
    "dinov2": (dinov2, 1, 1, "cls"),
    "registers": (
        lambda: timm_tower(reg_tokens=4, init_values=1.0, global_pool="token"),
        5,
        1,
        "cls",
    ),
    "siglip": (lambda: timm_tower(class_token=False, global_pool="map"), 0, 0, "map"),
    "gated": (
        lambda: timm_tower(mlp_layer=GluMlp, act_layer=nn.SiLU, global_pool="token"),
        1,
        1,
        "cls",
    ),
}


@pytest.fixture(scope="module", params=TOWERS)
def case(request):
    make, *expected = TOWERS[request.param]
    torch.manual_seed(0)
    backbone = make().eval()
    tower = resolve(backbone)
    return tower, torch.randn(2, 3, *tower.image_size), expected


def test_tokens_and_grid_are_those_that_the_blocks_see(case):
    tower, images, (n_prefix, n_class, pooling) = case
    assert (tower.n_prefix_tokens, tower.n_class_tokens) == (n_prefix, n_class)
    assert tower.pooling == pooling
    with capturing(tower, [0]) as captured, torch.no_grad():
        tower.encode_image(images)
    assert captured.inputs[0].shape == (2, tower.n_tokens, tower.width)
    counts = torch.bincount(tower.token_types(), minlength=3).tolist()
    assert counts == [n_class, tower.grid[0] * tower.grid[1], n_prefix - n_class]


def test_hooks_see_the_layer_norm_and_the_recomputed_mlp_exactly(case):
    tower, images, _ = case
    verify_hooks(tower, images)  # input 0 is the object that the LayerNorm returned
    with capturing(tower, range(tower.n_layers)) as captured, torch.no_grad():
        tower.encode_image(images)
        for layer, mlp in enumerate(tower.mlps):
            again = tower.to_images_first(mlp(tower.from_images_first(captured.inputs[layer])))
            assert (again - captured.outputs[layer]).abs().max() == 0.0


def test_replacing_every_mlp_by_its_recomputation_changes_nothing(case):
    tower, images, _ = case
    with torch.no_grad():
        expected = tower.encode_image(images)
        for mlp in tower.mlps:
            mlp.forward = lambda x, mlp=mlp: type(mlp).forward(mlp, x)
        try:
            changed = (tower.encode_image(images) - expected).abs().max()
        finally:
            for mlp in tower.mlps:
                del mlp.forward
    assert changed == 0.0


def test_last_patches_are_invisible_to_class_token_pooling_only(case):
    tower, images, (_, _, pooling) = case
    patches = tower.token_types() == 1

    def silence(module, arguments, output):
        silenced = tower.to_images_first(output).clone()
        silenced[:, patches] = 0
        return tower.from_images_first(silenced)

    with torch.no_grad():
        expected = tower.encode_image(images)
        handle = tower.mlps[-1].register_forward_hook(silence)
        changed = (tower.encode_image(images) - expected).abs().max().item()
        handle.remove()
    assert (changed == 0.0) == (pooling == "cls")


def test_tokens_first_of_old_releases():
    torch.manual_seed(0)
    model = own()
    first = resolve(model)
    images = torch.randn(2, 3, 16, 16)
    with capturing(first, [1]) as expected, evaluating(model):
        first.encode_image(images)
    transformer = model.visual.transformer
    transformer.batch_first = False
    for block in transformer.resblocks:
        block.attn.batch_first = False
    old = resolve(model)
    assert not old.batch_first
    with capturing(old, [1]) as seen, evaluating(model):
        old.encode_image(images)
    verify_hooks(old, images)
    torch.testing.assert_close(seen.inputs[1], expected.inputs[1])
    del transformer.batch_first  # the oldest do not even have the attribute
    assert not resolve(model).batch_first


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda: open_clip.CLIP(32, VISION | {"layers": [1, 1, 1, 1]}, TEXT), "ModifiedResNet"),
        (lambda: nn.Sequential(nn.Linear(2, 2)), "Sequential"),
        (lambda: nn.ModuleDict({"blocks": nn.Sequential(nn.Linear(2, 2))}), "no num_prefix"),
    ],
    ids=["ResNet", "Sequential", "blocks in a dictionary"],
)
def test_other_towers_are_refused_with_what_was_found(make, found):
    with pytest.raises(UnsupportedTowerError, match=found):
        resolve(make())


def test_blocks_without_an_mlp_are_refused():
    tower = timm_tower()
    del tower.blocks[1].mlp
    with pytest.raises(UnsupportedTowerError, match=r"blocks\.1 .* is a Block with norm1, attn"):
        resolve(tower)


def test_normalisation_after_the_mlp_is_refused():
    tower = resolve(timm_tower(block_fn=ResPostBlock))
    with pytest.raises(UnsupportedTowerError, match="does not read the output of its LayerNorm"):
        verify_hooks(tower, torch.randn(2, 3, 16, 16))


def test_shared_mlp_is_refused():
    model = timm_tower()
    model.blocks[1] = model.blocks[0]
    with pytest.raises(UnsupportedTowerError, match="more than once"):
        verify_hooks(resolve(model), torch.randn(2, 3, 16, 16))


def test_mlp_that_mixes_tokens_is_refused():
    class Mixing(nn.Module):
        def forward(self, x):
            return x - x.mean(0 if x.ndim == 2 else 1, keepdim=True)

    model = timm_tower()
    model.blocks[0].mlp = Mixing()
    model.blocks[0].mlp.scale = nn.Parameter(torch.ones(1))
    with pytest.raises(UnsupportedTowerError, match="token by token"):
        verify_hooks(resolve(model), torch.randn(2, 3, 16, 16))


def test_hooks_and_modes_are_put_back_after_an_error():
    tower = resolve(own())
    tower.visual.train()
    tower.blocks[1].eval()

    def interrupted():
        with evaluating(tower.visual), capturing(tower, [0, 1]):
            assert not tower.visual.training
            tower.encode_image(torch.randn(1, 5, 16, 16))

    with pytest.raises(RuntimeError, match="expected input"):
        interrupted()
    assert all(not mlp._forward_hooks for mlp in tower.mlps)
    assert tower.visual.training
    assert not tower.blocks[1].training


def test_recomputation_ignores_a_proxy_in_the_place_of_the_mlp():
    tower = resolve(own())
    inputs = torch.randn(5, 2, 32)
    expected = torch.stack([tower.mlps[1](inputs[:, 0]), tower.mlps[2](inputs[:, 1])], 1)
    for mlp in tower.mlps:
        mlp.forward = torch.zeros_like
    assert torch.equal(recompute(tower, (1, 2), inputs), expected)
    with pytest.raises(RuntimeError, match=r"resblocks\.1\.mlp is replaced"), capturing(tower, [1]):
        pass


def test_record_refuses_other_hooks_weights_and_activations():
    model = own()
    record = resolve(model).record()
    resolve(model).require(record)
    assert not record["quick_gelu"]
    with pytest.raises(TowerMismatchError, match="inputs is 'mlp.input' here, was 'c_fc.input'"):
        resolve(model).require(record | {"inputs": "c_fc.input"})
    quick = open_clip.CLIP(32, VISION, TEXT, quick_gelu=True)
    quick.load_state_dict(model.state_dict())
    assert resolve(quick).quick_gelu
    with pytest.raises(TowerMismatchError, match="activation is 'QuickGELU' here, was 'GELU'"):
        resolve(quick).require(record)
    trained = copy.deepcopy(model)
    with torch.no_grad():
        trained.visual.transformer.resblocks[0].attn.out_proj.weight[0, 0] += 1e-3
    with pytest.raises(TowerMismatchError, match="visual_sha256") as caught:
        resolve(trained).require(record)
    assert "mlp_sha256" not in str(caught.value)
    resolve(trained).require(record, weights=False)


def test_layers_are_checked():
    tower = resolve(own())
    assert tower.layer_indices() == (0, 1, 2)
    assert tower.layer_indices(range(1, 3)) == (1, 2)
    with pytest.raises(ValueError, match=r"0\.\.2"):
        tower.layer_indices([1, 3])
    with pytest.raises(ValueError, match="different and ascending"):
        tower.layer_indices([1, 1])
