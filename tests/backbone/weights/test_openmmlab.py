"""ViTs of mmseg and mmpretrain in a merging backbone: every tensor finds its place, and at r = 0 the features
are theirs."""

import pytest
import torch

# isort: skip - the bridge sees to it that mmseg can be imported
from mmseg.models.backbones import VisionTransformer
from safetensors.torch import save_file
from tiny import IMG, SIZES, images, tiny_vit

from pipeline.backbone.build import create_vit
from pipeline.backbone.weights.load import load_weights
from pipeline.errors import CheckpointError
from tasks.mmseg_bridge import DTEMBackbone

NAME = "vit_tiny_patch16_224"


def theirs(**options):
    torch.manual_seed(0)
    sizes = dict(
        img_size=IMG,
        patch_size=8,
        embed_dims=48,
        num_layers=3,
        num_heads=3,
        norm_cfg=dict(type="LN", eps=1e-6),
    )
    model = VisionTransformer(**sizes | options, out_indices=(1, 2), final_norm=True)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # norms and biases as well
    model.eval()
    return model


def in_segmentor(state):
    return {f"backbone.{name}": tensor for name, tensor in state.items()} | {
        "decode_head.conv_seg.weight": torch.zeros(4, 48, 1, 1)
    }


@pytest.mark.parametrize("when", ["weights", "init_cfg"])
@pytest.mark.parametrize("options", [{}, {"patch_bias": True}, {"pre_norm": True}, {"img_size": 96}], ids=str)
def test_features_are_those_of_mmsegs_vit(options, when, tmp_path):
    model = theirs(**options)
    save_file(in_segmentor(model.state_dict()), path := tmp_path / "vit.safetensors")
    start = (
        {"weights": str(path)}
        if when == "weights"
        else {"init_cfg": dict(type="Pretrained", checkpoint=str(path))}
    )
    timm_options = SIZES | ({"pre_norm": True} if options.get("pre_norm") else {})
    size = options.get("img_size", IMG)
    ours = DTEMBackbone(
        NAME, img_size=size, timm_options=timm_options, out_indices=(1, 2), policy="dtem", **start
    )
    ours.init_weights()
    given = images(2, size)
    with torch.no_grad():
        for own, other in zip(ours.eval()(given), model(given), strict=True):
            torch.testing.assert_close(own, other, atol=1e-4, rtol=1e-4)


MMPRETRAIN = {
    "patch_embed.proj.": "patch_embed.projection.",
    "norm_pre.": "pre_norm.",
    "norm1.": "ln1.",
    "norm2.": "ln2.",
    "ls1.gamma": "attn.gamma1.weight",
    "ls2.gamma": "ffn.gamma2.weight",
    "mlp.fc1.": "ffn.layers.0.0.",
    "mlp.fc2.": "ffn.layers.1.",
    "norm.": "ln1.",
    "fc_norm.": "ln2.",
    "head.": "head.layers.head.",
}


def mmpretrain_name(key):
    """As mmpretrain names it, by its source; the package is not installed here."""
    if key.startswith("blocks."):
        _, number, inside = key.split(".", 2)
        found = next((ours for ours in MMPRETRAIN if inside.startswith(ours)), "")
        return f"backbone.layers.{number}.{MMPRETRAIN.get(found, '')}{inside.removeprefix(found)}"
    found = next((ours for ours in MMPRETRAIN if key.startswith(ours)), "")
    name = MMPRETRAIN.get(found, "") + key.removeprefix(found)
    return name if name.startswith("head.") else f"backbone.{name}"


@pytest.mark.parametrize("options", [{}, {"init_values": 0.1}, {"pre_norm": True}], ids=str)
def test_names_of_mmpretrain_find_their_places(options):
    vit, ours = (
        create_vit(NAME, num_classes=10, img_size=IMG, timm_options=SIZES | options),
        tiny_vit("tome", timm_options=options),
    )
    report = load_weights(ours, {mmpretrain_name(key): value for key, value in vit.state_dict().items()})
    assert not report.missing and set(report.left) == {"head.weight", "head.bias"}
    assert all(torch.equal(value, vit.state_dict()[key]) for key, value in ours.state_dict().items())


def test_a_backbone_that_mmsegs_keys_hardly_fill_is_refused(tmp_path):
    state = {name.replace("layers.", "stages."): tensor for name, tensor in theirs().state_dict().items()}
    save_file(state, path := tmp_path / "stages.safetensors")
    for start in ({"weights": str(path)}, {"init_cfg": dict(type="Pretrained", checkpoint=str(path))}):
        with pytest.raises(CheckpointError, match="of the backbone's numbers"):
            DTEMBackbone(NAME, img_size=IMG, timm_options=SIZES, **start).init_weights()
