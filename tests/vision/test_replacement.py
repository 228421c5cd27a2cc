import gc
import threading

import open_clip
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer as TimmTransformer
from torch import nn

from probinterp.models import ActivationBatch, CrossLayerTranscoder
from probinterp.models.activation_priors import AbsTopK, BernoulliGaussian
from probinterp.models.transcoder_baselines import IdentityProxy, MeanProxy, RidgeProxy
from probinterp.vision import TowerMismatchError, resolve
from probinterp.vision.capture import capturing, evaluating
from probinterp.vision.hashes import weight_hash
from probinterp.vision.replacement import reaches_embedding, replace_mlps

TEXT = {"context_length": 8, "vocab_size": 32, "width": 32, "heads": 2, "layers": 1}
VISION = {"image_size": 16, "layers": 3, "width": 32, "head_width": 16, "patch_size": 4}
L, D, H = 3, 32, 48


def own(**changes):
    torch.manual_seed(0)
    return open_clip.CLIP(32, VISION | changes, TEXT).eval()


def registers(**changes):
    torch.manual_seed(0)
    shape = {"img_size": 16, "patch_size": 4, "embed_dim": D, "depth": L, "num_heads": 2}
    special = {"num_classes": 0, "reg_tokens": 2, "init_values": 1.0, "global_pool": "token"}
    return TimmTransformer(**(shape | special | changes)).eval()


def tokens_first():
    model = own()
    model.visual.transformer.batch_first = False
    for block in model.visual.transformer.resblocks:
        block.attn.batch_first = False
    return model


TOWERS = {
    "open_clip": own,
    "LayerScale": lambda: own(ls_init_value=0.7),
    "tokens first": tokens_first,
    "registers": registers,
    "average": lambda: own(pool_type="avg"),
    "no class token": lambda: registers(reg_tokens=0, class_token=False, global_pool="map"),
}


def images(n=4, seed=1):
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def transcoder(backbone=None, **options):
    torch.manual_seed(2)
    clt = CrossLayerTranscoder(L, D, H, activation=AbsTopK(6), **options).eval()
    with torch.no_grad():
        for parameter in clt.parameters():
            parameter.normal_(0, 0.2)
        for name, buffer in clt.named_buffers():
            if name in ("encoder.scale", "outputs.scale"):
                buffer.uniform_(0.5, 2)
    if backbone is not None:
        clt.metadata = {"backbone": resolve(backbone).record()}
    return clt


class Identity:
    """The MLPs themselves as a proxy."""

    def __init__(self, tower):
        self.tower, self.n_layers, self.width = tower, tower.n_layers, tower.width
        self.encoded = []

    def encode_layer(self, inputs, layer):
        self.encoded.append((layer, len(inputs)))
        return inputs

    def decode_target(self, codes, target, inputs=None):
        assert len(codes) == target + 1
        mlp = self.tower.mlps[target]
        return type(mlp).forward(mlp, inputs)


def features(backbone, pixels, clt=None, **options):
    tower = resolve(backbone)
    with torch.no_grad():
        if clt is None:
            return tower.encode_image(pixels)
        with replace_mlps(backbone, clt, **options):
            return tower.encode_image(pixels)


@pytest.fixture(params=TOWERS)
def backbone(request):
    return TOWERS[request.param]()


@pytest.mark.parametrize("layers", [None, [1], [0, 2]])
def test_the_mlps_as_their_own_proxy_change_nothing(backbone, layers):
    tower, pixels = resolve(backbone), images()
    changed = features(backbone, pixels, Identity(tower), layers=layers)
    assert (changed - features(backbone, pixels)).abs().max() == 0.0


def test_a_proxy_may_ask_the_mlps_that_it_replaces():
    backbone, pixels = own(), images()
    proxy = IdentityProxy(resolve(backbone).mlps, D)
    assert (features(backbone, pixels, proxy) - features(backbone, pixels)).abs().max() == 0.0


@pytest.mark.parametrize("kind", ["cls", "patch"])
def test_some_tokens_of_the_identity_change_nothing_beyond_rounding(kind):
    backbone, pixels = own(), images()
    changed = features(backbone, pixels, Identity(resolve(backbone)), tokens=kind)
    torch.testing.assert_close(changed, features(backbone, pixels), rtol=1e-5, atol=1e-6)


def cascade_by_hand(backbone, pixels, clt, layers, chosen, keep, final):
    """Features of a run in which each block is one line of mathematics (open_clip's own tower)."""
    visual = backbone.visual
    x = visual._embeds(pixels)
    codes = []
    for j, block in enumerate(visual.transformer.resblocks):
        x = x + block.ls_1(block.attention(block.ln_1(x)))
        normed = block.ln_2(x)
        codes.append(
            torch.stack(
                [clt.encode(n.expand(L, -1, -1).mT.mT.transpose(0, 1))[:, j] for n in normed]
            )
        )
        y = block.mlp(normed)
        if j in layers:
            kept = keep if not final or j == max(layers) else range(L)
            made = clt.decoder_bias[j] + sum(
                (codes[i] @ clt.decoder(i, j) for i in range(j + 1) if i in kept),
                torch.zeros_like(y),
            )
            y = torch.where(chosen.view(1, -1, 1), made, y)
        x = x + block.ls_2(y)
    pooled, _ = visual._pool(x)
    return pooled @ visual.proj


@pytest.mark.parametrize("kind", ["cls", "patch", "all"])
@pytest.mark.parametrize(
    ("layers", "keep", "scope"),
    [
        ([0, 1, 2], [0, 1, 2], "all"),
        ([1, 2], [0, 1, 2], "all"),
        ([0, 2], [0, 1, 2], "all"),
        ([1], [0, 1, 2], "all"),
        ([0, 1, 2], [1], "all"),
        ([0, 1, 2], [], "all"),
        ([0, 1, 2], [0, 2], "final"),
        ([1, 2], [0], "final"),
    ],
)
@torch.no_grad()
def test_cascade_is_the_plain_loop_over_blocks(kind, layers, keep, scope):
    backbone, pixels, clt = own(ls_init_value=0.7), images(), transcoder()
    types = resolve(backbone).token_types()
    chosen = torch.ones_like(types).bool() if kind == "all" else types == (kind == "patch")
    expected = cascade_by_hand(backbone, pixels, clt, layers, chosen, keep, scope == "final")
    got = features(backbone, pixels, clt, layers=layers, tokens=kind, keep=keep, scope=scope)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    dropped = set(range(L)) - set(keep)
    same = features(backbone, pixels, clt, layers=layers, tokens=kind, drop=dropped, scope=scope)
    assert torch.equal(same, got)
    if kind == "all" and layers != [1]:
        assert (got - features(backbone, pixels)).abs().max() > 0.01  # it does something


def test_tokens_first_towers_give_the_same():
    clt, pixels = transcoder(), images()
    for kind in ("cls", "patch", "all"):
        torch.testing.assert_close(
            features(tokens_first(), pixels, clt, tokens=kind),
            features(own(), pixels, clt, tokens=kind),
            rtol=1e-5,
            atol=1e-6,
        )


def test_last_patches_are_invisible_to_class_token_pooling():
    backbone, pixels, clt = own(), images(), transcoder()
    original = features(backbone, pixels)
    patch = features(backbone, pixels, clt, layers=[L - 1], tokens="patch")
    assert (patch - original).abs().max() == 0.0
    every = features(backbone, pixels, clt, layers=[L - 1], tokens="all")
    cls = features(backbone, pixels, clt, layers=[L - 1], tokens="cls")
    torch.testing.assert_close(every, cls, rtol=1e-5, atol=1e-6)
    assert (cls - original).abs().max() > 0.01
    assert not reaches_embedding(backbone, [L - 1], "patch")
    assert reaches_embedding(backbone, [L - 2, L - 1], "patch")
    assert reaches_embedding(backbone, [L - 1], "all")
    averaged = own(pool_type="avg")
    assert not reaches_embedding(averaged, [L - 1], "cls")
    unseen = features(averaged, pixels, clt, layers=[L - 1], tokens="cls")
    assert (unseen - features(averaged, pixels)).abs().max() == 0.0
    assert reaches_embedding(averaged, [L - 1], "patch")
    visible = features(averaged, pixels, clt, layers=[L - 1], tokens="patch")
    assert (visible - features(averaged, pixels)).abs().max() > 0.01


def test_registers_keep_their_mlp():
    backbone, pixels = registers(), images()
    tower = resolve(backbone)
    proxy = Identity(tower)
    features(backbone, pixels, proxy, layers=[1])
    assert proxy.encoded == [(0, 4 * 17), (1, 4 * 17)]  # class token and 16 patches, no register
    clt = transcoder()
    with capturing(tower, range(L)) as original, evaluating(backbone):
        tower.encode_image(pixels)
    seen = {}
    with replace_mlps(backbone, clt, layers=[0]), torch.no_grad():
        handle = tower.mlps[0].register_forward_hook(lambda m, a, o: seen.update(out=o))
        tower.encode_image(pixels)
        handle.remove()
    assert torch.equal(seen["out"][:, 1:3], original.outputs[0][:, 1:3])
    made = clt.decode_target([clt.encode_layer(original.inputs[0][:, 0], 0)], 0)
    torch.testing.assert_close(seen["out"][:, 0], made)


def test_the_mlp_is_not_computed_where_every_token_is_replaced():
    backbone, calls = own(), []
    tower = resolve(backbone)
    for mlp in tower.mlps:
        mlp[0].register_forward_hook(lambda m, a, o: calls.append(m))
    features(backbone, images(), transcoder(), layers=[1, 2])
    assert len(calls) == 1
    calls.clear()
    features(backbone, images(), transcoder(), layers=[1, 2], tokens="cls")
    assert len(calls) == 3


def test_per_layer_transcoder_encodes_only_what_it_writes():
    clt = transcoder(cross_layer=False)
    backbone, pixels = own(), images()
    got = features(backbone, pixels, clt, layers=[2])
    counted = []
    clt.encode_layer = lambda x, layer, f=clt.encode_layer: counted.append(layer) or f(x, layer)
    assert torch.equal(features(backbone, pixels, clt, layers=[2]), got)
    assert counted == [2]


def test_kinds_of_codes():
    backbone, pixels, clt = own(), images(), transcoder()
    mean = features(backbone, pixels, clt)
    torch.testing.assert_close(features(backbone, pixels, clt, codes="hard"), mean)
    torch.testing.assert_close(features(backbone, pixels, clt, codes="sample"), mean)  # points


class Noisy(Identity):
    """Codes are normal around zero; the outputs are their first D."""

    def posterior_codes_of(self, inputs, layer):
        class Posterior:
            def sample(self, *, seed):
                generator = torch.Generator().manual_seed(seed)
                return torch.randn(len(inputs), 1, D, generator=generator)

        return Posterior()

    def decode_target(self, codes, target, inputs=None):
        return codes[target]


def test_draws_differ_by_pass_and_layer_and_repeat_by_seed():
    backbone, pixels = own(), images()
    proxy = Noisy(resolve(backbone))

    def two_passes(seed):
        with replace_mlps(backbone, proxy, codes="sample", seed=seed), torch.no_grad():
            return [backbone.encode_image(pixels) for _ in range(2)]

    first, second = two_passes(0)
    assert (first - second).abs().max() > 0.01
    again = two_passes(0)
    assert torch.equal(first, again[0])
    assert torch.equal(second, again[1])
    assert (first - two_passes(1)[0]).abs().max() > 0.01


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_the_tower_is_put_back_whatever_happens(error):
    backbone, pixels, clt = own(), images(), transcoder()
    tower = resolve(backbone)
    before, keys, weights = (
        features(backbone, pixels),
        list(backbone.state_dict()),
        weight_hash(backbone),
    )

    def interrupted():
        with replace_mlps(backbone, clt, layers=[1, 2], tokens="cls"), torch.no_grad():
            assert list(backbone.state_dict()) == keys
            assert "forward" in vars(tower.mlps[1])
            assert (backbone.encode_image(pixels) - before).abs().max() > 0.01
            raise error

    with pytest.raises(error):
        interrupted()
    assert all("forward" not in vars(mlp) for mlp in tower.mlps)
    assert all(not mlp._forward_pre_hooks and not mlp._forward_hooks for mlp in tower.mlps)
    assert torch.equal(features(backbone, pixels), before)
    assert list(backbone.state_dict()) == keys
    assert weight_hash(backbone) == weights
    features(backbone, pixels, clt)  # may be replaced again


def test_an_abandoned_context_puts_the_tower_back():
    backbone, clt = own(), transcoder()

    def unfinished():
        with replace_mlps(backbone, clt):
            yield

    generator = unfinished()
    next(generator)
    assert "forward" in vars(resolve(backbone).mlps[0])
    del generator
    gc.collect()
    assert "forward" not in vars(resolve(backbone).mlps[0])
    features(backbone, images(), clt)


def test_an_error_inside_the_proxy_puts_the_tower_back_and_the_next_pass_is_whole():
    backbone, pixels, clt = own(), images(), transcoder()
    expected = features(backbone, pixels, clt)
    with replace_mlps(backbone, clt), torch.no_grad():
        with pytest.raises(RuntimeError):
            backbone.encode_image(torch.randn(2, 5, 16, 16))
        assert torch.equal(backbone.encode_image(pixels), expected)
        assert torch.equal(backbone.encode_image(pixels[:2]), expected[:2]) or torch.allclose(
            backbone.encode_image(pixels[:2]), expected[:2], atol=1e-6
        )


def test_nesting_is_refused_and_leaves_the_outer_one():
    backbone, pixels, clt = own(), images(), transcoder()
    outer = features(backbone, pixels, clt, layers=[1])
    with replace_mlps(backbone, clt, layers=[1]), torch.no_grad():
        with pytest.raises(RuntimeError, match="cannot be nested"):
            features(backbone, pixels, clt, layers=[2])
        assert torch.equal(backbone.encode_image(pixels), outer)
    mlp = resolve(backbone).mlps[0]
    mlp.forward = mlp.forward  # somebody else's
    with pytest.raises(RuntimeError, match="replaced at the moment"):
        features(backbone, pixels, clt)
    assert "forward" in vars(mlp)


def in_thread(function):
    caught = []

    def run():
        try:
            function()
        except RuntimeError as error:
            caught.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return caught


def test_other_threads_are_refused():
    backbone, pixels, clt = own(), images(), transcoder()
    with replace_mlps(backbone, clt):
        assert "another thread" in in_thread(lambda: features(backbone, pixels))[0]
        assert "nested" in in_thread(lambda: features(backbone, pixels, clt))[0]
    assert in_thread(lambda: features(backbone, pixels)) == []
    other = own()
    with replace_mlps(backbone, clt):
        assert in_thread(lambda: features(other, pixels, clt)) == []


def test_uncertain_codes_in_the_place_of_the_mlps():
    backbone, pixels = own(), images()
    clt = CrossLayerTranscoder(L, D, H, activation=BernoulliGaussian()).eval()
    kinds = {
        kind: features(backbone, pixels, clt, layers=[0], codes=kind)
        for kind in ("mean", "hard", "sample")
    }
    tower = resolve(backbone)
    with capturing(tower, [0]) as seen, evaluating(backbone):
        tower.encode_image(pixels)
    posterior = clt.posterior_codes_of(seen.inputs[0].flatten(0, 1), 0)
    assert posterior.variance.min() > 0
    codes = {"mean": posterior.mean, "hard": posterior.hard()}
    for kind, z in codes.items():
        made = clt.decode_target([z], 0).detach().unflatten(0, (4, -1))
        tower.mlps[0].forward = lambda x, made=made: made
        try:
            torch.testing.assert_close(kinds[kind], features(backbone, pixels))
        finally:
            del tower.mlps[0].forward
    assert (kinds["sample"] - kinds["mean"]).abs().max() > 1e-3
    again = features(backbone, pixels, clt, layers=[0], codes="sample")
    assert torch.equal(again, kinds["sample"])


def test_the_device_of_the_tower_is_used(device):
    backbone, clt, pixels = own(), transcoder(), images()
    expected = [features(backbone, pixels, clt, tokens=kind) for kind in ("cls", "all")]
    backbone, clt = backbone.to(device), clt.to(device)
    for kind, on_cpu in zip(("cls", "all"), expected, strict=True):
        got = features(backbone, pixels.to(device), clt, tokens=kind)
        torch.testing.assert_close(got.cpu(), on_cpu, rtol=1e-3, atol=1e-4)


def test_a_transcoder_of_another_tower_is_refused():
    backbone, pixels = own(), images()
    clt = transcoder(backbone)
    features(backbone, pixels, clt)
    clt.metadata = {"backbone": clt.metadata["backbone"] | {"inputs": "ln_2.input"}}
    with pytest.raises(TowerMismatchError, match="inputs is 'mlp.input' here, was 'ln_2.input'"):
        features(backbone, pixels, clt)
    trained = own()
    clt = transcoder(trained)
    with torch.no_grad():
        trained.visual.transformer.resblocks[0].mlp.c_fc.bias += 1
    with pytest.raises(TowerMismatchError, match="mlp_sha256"):
        features(trained, pixels, clt)
    features(trained, pixels, clt, same_weights=False)
    with pytest.raises(TowerMismatchError, match="3 layers of width 32, the tower 2"):
        features(own(layers=2), pixels, transcoder())
    assert all("forward" not in vars(mlp) for mlp in resolve(backbone).mlps)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [2, 1]}, "ascending"),
        ({"layers": [3]}, r"0\.\.2"),
        ({"tokens": "class"}, "cls, patch, all"),
        ({"keep": [0], "drop": [1]}, "not both"),
        ({"keep": [3]}, r"0\.\.2, got \[3\]"),
        ({"scope": "last"}, '"all" or "final"'),
        ({"codes": "median"}, "mean, hard, sample"),
    ],
)
def test_options_that_do_not_exist(options, message):
    backbone = own()
    with pytest.raises(ValueError, match=message), replace_mlps(backbone, transcoder(), **options):
        pass
    assert all("forward" not in vars(mlp) for mlp in resolve(backbone).mlps)


def test_class_tokens_are_asked_for_where_there_are_none():
    backbone = TOWERS["no class token"]()
    with pytest.raises(ValueError, match="no cls tokens"):
        features(backbone, images(), transcoder(), tokens="cls")


def test_gradients_pass_through_the_proxy():
    backbone, clt = own(), transcoder()
    pixels = images(2).requires_grad_()
    for kind in ("cls", "all"):
        with replace_mlps(backbone, clt, tokens=kind):
            backbone.encode_image(pixels).sum().backward()
        assert clt.encoder.weight.grad.abs().sum() > 0
        assert pixels.grad.abs().sum() > 0
        clt.zero_grad()


def test_half_precision_towers_with_a_proxy_in_single_precision():
    backbone, pixels, clt = own(), images(), transcoder()
    expected = features(backbone, pixels, clt)
    with torch.autocast("cpu", torch.bfloat16):
        got = features(backbone, pixels, clt)
    assert torch.nn.functional.cosine_similarity(got.float(), expected).min() > 0.99
    low = own().bfloat16()
    got = features(low, pixels.bfloat16(), clt, tokens="cls")
    assert got.dtype == torch.bfloat16
    whole = features(backbone, pixels, clt, tokens="cls")
    assert torch.nn.functional.cosine_similarity(got.float(), whole).min() > 0.99


def test_modules_hooked_by_others_still_run_their_hooks():
    backbone, seen = own(), []
    handle = resolve(backbone).mlps[1].register_forward_hook(lambda m, a, o: seen.append(o.shape))
    features(backbone, images(), transcoder())
    assert seen == [torch.Size([4, 17, D])]
    handle.remove()
    assert isinstance(resolve(backbone).mlps[1], nn.Sequential)


def test_baselines_without_parameters_work_in_half_precision():
    model = own().bfloat16()
    means = torch.randn(L, D)
    with replace_mlps(model, MeanProxy(means)), torch.no_grad():
        found = model.encode_image(images().bfloat16())
    assert found.dtype == torch.bfloat16
    assert found.isfinite().all()
    ridge = RidgeProxy.fitted([ActivationBatch(torch.randn(99, L, D), torch.randn(99, L, D))])
    with replace_mlps(model, ridge), torch.no_grad():
        assert model.encode_image(images().bfloat16()).isfinite().all()
