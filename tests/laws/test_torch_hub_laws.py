"""What `patch` promises of torch hub's DINOv2 and DINOv3 beside what it does of any model: lists, masks, what
is drawn in training, heads around a model."""

import logging
from functools import partial

import pytest
import timm
import torch
from sizes import check_embedded
from timm.models import eva, vision_transformer
from tiny import SIZES, generator, images
from tiny_torch_hub import CODE, MODELS, classifier, drawn, library_model
from torch import nn

import dtem
from pipeline.backbone.patching.merging_model import MergingModel
from pipeline.backbone.rotary import RotaryRule
from pipeline.errors import CheckpointError, ConfigError

EVERY = pytest.mark.parametrize("kind", MODELS)
V2, V2_CHUNKS, V3, V3_NORMS = MODELS


def close(now, then):
    """Equal within rounding, also dicts of tensors, lists of them, and None."""
    torch.testing.assert_close(now, then, atol=1e-5, rtol=1e-5)


def known(features):
    """The features, and not the masks, which may be None."""
    assert list(features)[-1] == "masks"
    return {name: value for name, value in features.items() if name != "masks"}


@EVERY
@torch.no_grad()
def test_masks_and_lists_are_the_librarys(kind):
    model, x, small = library_model(kind), images(), images(size=48)
    masks = torch.rand(2, 64, generator=generator(3)) < 0.3
    before = [model.forward_features(x, masks), model(x, is_training=True), model.forward_features(small)]
    dtem.patch(model, "tome", reduction=0)
    after = [model.forward_features(x, masks), *model.forward_features([x, small], [None, None])]
    close([known(one) for one in after], [known(one) for one in before])
    assert after[0]["masks"] is masks and after[0].keys() == before[0].keys()
    model.reduction = 4
    merged = model.forward_features([x, small], [masks, None])
    assert [one["x_norm_patchtokens"].shape[1] for one in merged] == [64, 36]
    close(known(merged[1]), known(model(small, is_training=True)))


@torch.no_grad()
def test_local_crops_in_training_have_their_own_norm():
    model, both = library_model(V3_NORMS).train(), [images(), images(size=48)]
    before = model.forward_features(both, [None, None])
    dtem.patch(model, "tome", reduction=0)
    after = model.forward_features(both, [None, None])
    close([known(one) for one in after], [known(one) for one in before])
    alone = model(both[1], is_training=True)
    assert not torch.allclose(alone["x_norm_clstoken"], after[1]["x_norm_clstoken"], atol=1e-2)


DRAWS = [
    (V2, {"drop_path_rate": 0.1}),
    (V2_CHUNKS, {"drop_path_rate": 0.4}),
    (V3, {"drop_path_rate": 0.4}),
    (V3, {"pos_embed_rope_rescale_coords": 2.0}),
]


@pytest.mark.parametrize(("kind", "options"), DRAWS)
def test_what_is_drawn_in_training_is_as_in_the_library(kind, options):
    """Images that a half of a block leaves out, and the positions of DINOv3, which are others in each
    block."""
    model, x = library_model(kind, **options).train(), images(batch=5)
    torch.manual_seed(3)
    before = model(x)
    assert not torch.allclose(before, model(x), atol=1e-2)
    dtem.patch(model, "tome", reduction=0)
    torch.manual_seed(3)
    close(model(x), before)
    model.reduction = 4
    assert model(x).isfinite().all()


@EVERY
@torch.no_grad()
def test_a_token_of_size_two_counts_like_two_equal_patches(kind):
    model = dtem.patch(library_model(kind).double(), "none", reduction=0)
    check_embedded(model.merging_blocks, model.embedded(images().double()))


@pytest.mark.parametrize(("kind", "layers"), [(V2, 1), (V2, 4), (V2_CHUNKS, 4), (V3_NORMS, 1)])
@torch.no_grad()
def test_a_classifier_is_patched_as_a_whole(kind, layers):
    model, x = classifier(kind, layers), images()
    before, library, keys = model(x), type(model), list(model.state_dict())
    assert dtem.patch(model, "tome", reduction=0) is model and isinstance(model, library)
    close(model(x), before)
    model.reduction = 5
    assert model.backbone.reduction == 5 and not torch.allclose(model(x), before, atol=1e-3)
    prefix = model.encode(x).final.num_prefix
    assert model.encode(x).final.tokens.shape[1] == 64 + prefix - 5 * 4
    with pytest.raises(ConfigError, match="patched already"):
        dtem.patch(model.backbone)
    assert dtem.unpatch(model) is model and type(model) is library and list(model.state_dict()) == keys
    assert torch.equal(model(x), before)


@EVERY
@torch.no_grad()
def test_a_backbone_whose_forward_gives_layers_does_so_merged(kind):
    """As the depth models of torch hub have it."""
    model, x = library_model(kind), images()
    layers = partial(
        model.get_intermediate_layers, n=[0, 2], reshape=True, return_class_token=True, norm=False
    )
    model.forward = layers
    before = model(x)
    dtem.patch(model, "tome", reduction=0)
    close(model(x), before)
    model.reduction = 4
    after = model(x)
    assert [one[0].shape for one in after] == [(2, 48, 8, 8)] * 2
    assert not torch.allclose(after[1][0], before[1][0], atol=1e-3)


@EVERY
def test_a_step_of_training_teaches_weights_and_embeddings(kind):
    model = dtem.patch(library_model(kind), "dtem", reduction=4, learns=True).train()
    optimizer, x, wanted = (
        torch.optim.SGD(model.parameters(), lr=0.01),
        images(),
        images(seed=5)[:, 0, :6, :8],
    )
    losses = []
    for _ in range(2):
        loss = (model(x) - wanted.flatten(1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    moved = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert losses[1] < losses[0] and any(".metric." in name for name in moved)


def taught(model):
    with torch.no_grad():
        for own in (own for block in model.merging_blocks for own in block.metric.parameters()):
            own.copy_(torch.randn(own.shape, generator=generator(3)))
    return model


@pytest.mark.parametrize(
    ("kind", "name", "read"),
    [
        (V2, "vit_small_patch14_dinov2", vision_transformer.checkpoint_filter_fn),
        (V2_CHUNKS, "vit_giant_patch14_reg4_dinov2", vision_transformer.checkpoint_filter_fn),
        (V3, "vit_small_patch16_dinov3_qkvb", eva.checkpoint_filter_fn),
    ],
)
def test_an_adapter_of_timms_model_fits_torch_hubs_of_the_same_weights(kind, name, read, tmp_path):
    model = library_model(kind, **({"block_chunks": 0} if kind == V2_CHUNKS else {}))
    other = timm.create_model(name, img_size=64, **SIZES)
    other.load_state_dict(read(model.state_dict(), other))
    dtem.save_adapter(taught(dtem.patch(other, reduction=6)), tmp_path / "own")
    dtem.patch(model, adapter=tmp_path / "own")
    assert model.reduction == 6
    for own, wanted in zip(model.blocks, other.blocks, strict=True):
        assert torch.equal(own.metric.weight, wanted.metric.weight)


@torch.no_grad()
def test_an_adapter_of_rotary_positions_keeps_their_rule_and_knows_its_base(tmp_path, caplog):
    model, x = taught(dtem.patch(library_model(V3), reduction=6, rotary=RotaryRule("destination"))), images()
    dtem.save_adapter(model, tmp_path / "own")
    other = dtem.patch(library_model(V3), adapter=tmp_path / "own")
    assert other.merging.rotary == RotaryRule("destination") and torch.equal(other(x), model(x))
    base = drawn(library_model(V3))
    with pytest.raises(CheckpointError, match="with other weights"):
        dtem.patch(base, adapter=tmp_path / "own")
    assert not isinstance(base, MergingModel)
    with caplog.at_level(logging.WARNING):
        dtem.patch(base, adapter=tmp_path / "own", check_base=False)
    assert "measure what it keeps" in caplog.text


@pytest.mark.parametrize("package", ["dinov2", "dinov3"])
def test_the_lines_of_a_user(package):
    """As with `torch.hub.load("facebookresearch/...")`, of a folder."""
    if CODE.name != "torch_hub":
        pytest.skip("the original code has no tiny model in its hubconf.py")
    model = torch.hub.load(str(CODE / package), f"{package}_tiny", source="local", pretrained=False)
    dtem.patch(model, reduction=4)
    assert model(images()).shape == (2, 48) and model.encode(images()).final.tokens.shape[1] < 60


class Other(nn.Module):
    """A part that no library has."""


def with_other(kind, where):
    model = library_model(kind)
    parent, _, name = where.rpartition(".")
    setattr(model.get_submodule(parent), name, Other())
    return model


def of_package(module, name="ConvNeXt"):
    return type(name, (nn.Module,), {"__module__": module})()


def without(model, name):
    delattr(model, name)
    return model


OLD = r"timm and transformers have .* \(docs/models.md\)"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: with_other(V2, "blocks.1"), f"its blocks are Other, which .*; {OLD}"),
        (lambda: with_other(V2_CHUNKS, "blocks.0.0"), "its blocks are Other"),
        (lambda: with_other(V3, "blocks.2"), f"its blocks are Other, which .*; {OLD}"),
        (lambda: with_other(V2, "blocks.1.attn"), "Other; merging knows dinov2.MemEffAttention"),
        (lambda: with_other(V3, "blocks.0.attn"), "Other; merging knows dinov3.SelfAttention"),
        (lambda: with_other(V3, "blocks.0.attn.q_norm"), "dinov3.SelfAttention has q_norm, unlike"),
        (lambda: with_other(V2, "blocks.2.ls3"), "dinov2.NestedTensorBlock has ls3, unlike"),
        (lambda: without(library_model(V2), "norm"), r"it has no norm; .*force_reload=True.*; timm and"),
        (
            lambda: nn.ModuleDict({"one": library_model(V2), "two": library_model(V2)}),
            "ModuleDict cannot merge",
        ),
        (
            lambda: of_package("dinov3.models.convnext"),
            f"dinov3.ConvNeXt cannot merge: merging knows .*; {OLD}",
        ),
        (
            lambda: of_package("another.dinov2", "DinoVisionTransformer"),
            "another.DinoVisionTransformer cannot merge: merging knows .*dinov2.DinoVisionTransformer",
        ),
    ],
)
def test_what_nearly_fits_is_refused_with_a_way_out(make, reason):
    model = make()
    kinds = [type(part) for part in model.modules()]
    with pytest.raises(ConfigError, match=reason):
        dtem.patch(model)
    assert [type(part) for part in model.modules()] == kinds


def test_two_backbones_in_a_model_are_patched_alone():
    model = classifier(V3)
    model.second = library_model(V3)
    with pytest.raises(ConfigError, match="has 2 image towers; patch each of them alone"):
        dtem.patch(model)
    dtem.patch(model.second)
    dtem.patch(model.backbone)
