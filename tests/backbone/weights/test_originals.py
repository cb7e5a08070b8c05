"""State dicts that other projects wrote for themselves: in a merging backbone they give what timm's own
conversion gives in timm's model."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import build_sincos2d_pos_embed
from timm.models.vision_transformer import checkpoint_filter_fn
from tiny import SEED, generator

from pipeline import build_backbone
from pipeline.backbone.weights.files import read_state_dict
from pipeline.backbone.weights.load import load_weights
from pipeline.errors import CheckpointError

IMG = 32
SIZES = dict(embed_dim=32, depth=4, num_heads=2, patch_size=8, mlp_ratio=2)


def timms(name, img_size=IMG, **options):
    """timm's model, and with every weight drawn anew."""
    torch.manual_seed(SEED)
    model = timm.create_model(name, img_size=img_size, num_classes=0, **SIZES | options).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def backbone(name, **options):
    torch.manual_seed(SEED + 1)
    return build_backbone(name, img_size=IMG, timm_options=SIZES | options).eval()


def pictures():
    return torch.randn(2, 3, IMG, IMG, generator=generator(2))


def facebooks(model):
    """The state dict as DINOv2's repository names it: positions with the class token's, `w12` and `w3` in a
    SwiGLU, a mask token."""
    state = {}
    swiglu = hasattr(model.blocks[0].mlp, "gate_last")
    for key, value in model.state_dict().items():
        key = key.replace("mlp.fc1.", "mlp.w12.").replace("mlp.fc2.", "mlp.w3.") if swiglu else key
        state[key] = value
    if "reg_token" in state:
        state["register_tokens"] = state.pop("reg_token")
        of_class = torch.randn(1, 1, 32, generator=generator(3))
        state["pos_embed"] = torch.cat([of_class, state["pos_embed"]], dim=1)
        state["cls_token"] = state["cls_token"] - of_class
    return state | {"mask_token": torch.zeros(1, 32)}


def in_chunks(state, size=2):
    """As a model with `block_chunks` saves it: blocks keep their numbers in the whole model."""
    renamed = {}
    for key, value in state.items():
        if key.startswith("blocks."):
            number, inside = key.removeprefix("blocks.").split(".", 1)
            key = f"blocks.{int(number) // size}.{number}.{inside}"
        renamed[key] = value
    return renamed


DINOV2 = {
    "plain": ("vit_small_patch14_dinov2", {}),
    "registers": ("vit_small_patch14_reg4_dinov2", {}),
    "swiglu": ("vit_giant_patch14_dinov2", dict(mlp_ratio=3)),
    "swiglu and registers": ("vit_giant_patch14_reg4_dinov2", dict(mlp_ratio=3)),
}


@torch.no_grad()
@pytest.mark.parametrize("chunks", ["one list", "chunks", "teacher of a training"])
@pytest.mark.parametrize("case", DINOV2)
def test_dinov2_in_its_own_keys(case, chunks, tmp_path):
    name, options = DINOV2[case]
    model, ours = timms(name, **options), backbone(name, **options)
    state = facebooks(model)
    given = state if chunks == "one list" else in_chunks(state)
    if chunks == "teacher of a training":
        own = {f"backbone.{key}": value for key, value in given.items()}
        saved = {"teacher": own | {"dino_head.mlp.0.weight": torch.zeros(3)}, "iteration": 3}
        torch.save(saved, tmp_path / "teacher_checkpoint.pth")
        given = read_state_dict(tmp_path / "teacher_checkpoint.pth")
    report = load_weights(ours, given)
    assert not report.missing
    model.load_state_dict(checkpoint_filter_fn(dict(state), model))
    wanted = model.forward_features(pictures())
    torch.testing.assert_close(ours(pictures(), reduction=0).final.tokens, wanted, atol=2e-5, rtol=1e-4)


def test_dinov2_of_another_patch_is_refused_and_not_resized():
    name = "vit_small_patch14_dinov2"
    given = facebooks(timms(name, patch_size=16))
    with pytest.raises(CheckpointError, match=r"patch_embed.proj.weight' is .*16, 16.*patch_size=16"):
        load_weights(backbone(name), given)


def test_registers_without_a_place_are_refused():
    given = facebooks(timms("vit_small_patch14_reg4_dinov2"))
    with pytest.raises(CheckpointError, match="pos_embed.*reg_tokens=4"):
        load_weights(backbone("vit_small_patch14_dinov2"), given)


@torch.no_grad()
@pytest.mark.parametrize("decoder", [False, True], ids=["encoder", "with the decoder"])
def test_mae_in_its_own_keys(decoder, tmp_path):
    """Its positions are sines and cosines that do not learn, and stand in its files."""
    name = "vit_base_patch16_224.mae"
    model, ours = timms(name), backbone(name)
    of_patches = build_sincos2d_pos_embed([4, 4], 32, interleave_sin_cos=False)
    model.pos_embed.copy_(torch.cat([torch.zeros(1, 32), of_patches.flatten(0, -2)])[None])
    state = model.state_dict()
    behind = {
        "mask_token": torch.zeros(1, 1, 16),
        "decoder_pos_embed": torch.zeros(1, 17, 16),
        "decoder_embed.weight": torch.zeros(16, 32),
        "decoder_blocks.0.norm1.weight": torch.ones(16),
        "decoder_norm.weight": torch.ones(16),
        "decoder_pred.weight": torch.zeros(192, 16),
    }
    torch.save({"model": state | (behind if decoder else {}), "epoch": 3}, tmp_path / "mae.pth")
    report = load_weights(ours, read_state_dict(tmp_path / "mae.pth"))
    assert not report.missing
    assert set(report.left) == (behind.keys() - {"mask_token"} if decoder else set())
    wanted = model.forward_features(pictures())
    torch.testing.assert_close(ours(pictures(), reduction=0).final.tokens, wanted, atol=2e-5, rtol=1e-4)
    assert torch.equal(ours.pos_embed, model.pos_embed)


@torch.no_grad()
def test_a_trunk_in_an_open_clip_model_is_read(tmp_path):
    name = "vit_base_patch16_siglip_gap_224"
    model, ours = timms(name), backbone(name)
    state = {f"visual.trunk.{key}": value for key, value in model.state_dict().items()}
    save_file(state | {"text.x": torch.zeros(1)}, tmp_path / "clip.safetensors")
    assert not load_weights(ours, read_state_dict(tmp_path / "clip.safetensors")).missing
    wanted = model.forward_features(pictures())
    torch.testing.assert_close(ours(pictures(), reduction=0).final.tokens, wanted, atol=2e-5, rtol=1e-4)
