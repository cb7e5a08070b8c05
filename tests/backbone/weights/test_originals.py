"""State dicts that other projects wrote for themselves: in a merging backbone they give what timm's own
conversion gives in timm's model."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import build_sincos2d_pos_embed
from timm.models import eva
from timm.models.vision_transformer import checkpoint_filter_fn
from tiny import SEED, generator

import tasks  # noqa: F401  (registration)
from pipeline import build_backbone
from pipeline.backbone.weights.block_names import as_in_timm
from pipeline.backbone.weights.files import read_state_dict
from pipeline.backbone.weights.load import load_weights
from pipeline.errors import CheckpointError
from pipeline.model import MultiTaskModel
from pipeline.objectives import OBJECTIVES
from tasks.classification import ClassificationTask

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


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_small_patch16_dinov3_qkvb"])
def test_convolutions_of_a_decoder_change_nothing(name):
    """They may stand before the backbone, with kernels of other sizes."""
    model, ours = timms(name), backbone(name)
    decoder = {"decoder.conv1.weight": torch.zeros(1, 64, 1, 1), "a.proj.weight": torch.zeros(2, 2, 3, 3)}
    report = load_weights(ours, decoder | model.state_dict())
    assert set(report.left) == decoder.keys() and not report.missing
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in ours.state_dict().items())


def test_radios_own_file_is_refused():
    """Its positions are resampled in another way than those of all others."""
    given = {"radio_model.model.patch_generator.embedder.weight": torch.zeros(32, 192)}
    with pytest.raises(CheckpointError, match="only its own code resamples; give backbone.pretrained"):
        load_weights(backbone("vit_tiny_patch16_224"), given)


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


def facebooks_v3(model):
    """The state dict as DINOv3's repository names it: `storage_tokens`, a bias of queries, keys and values
    with a mask that removes the keys', periods of the positions, `w1`, `w2` and `w3` in a SwiGLU."""
    names = {"reg_token": "storage_tokens", "gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}
    if hasattr(model.blocks[0].mlp, "fc1_g"):
        names |= {"mlp.fc1_g.": "mlp.w1.", "mlp.fc1_x.": "mlp.w2.", "mlp.fc2.": "mlp.w3."}
    state = renamed(model.state_dict(), names)
    for number in range(SIZES["depth"]):
        attn, ones = f"blocks.{number}.attn.", torch.ones(32)
        q, v = (state.pop(f"{attn}{part}_bias", torch.zeros(32)) for part in "qv")
        state[f"{attn}qkv.bias"] = torch.cat([q, ones, v])
        state[f"{attn}qkv.bias_mask"] = torch.cat([ones, torch.zeros(32), ones])
    return state | {"mask_token": torch.zeros(1, 32), "rope_embed.periods": torch.ones(4)}


def baais(model):
    """The state dict as EVA02's repository names it."""
    names = {
        "attn.q_proj.bias": "attn.q_bias",
        "attn.v_proj.bias": "attn.v_bias",
        "attn.norm.": "attn.inner_attn_ln.",
        "mlp.fc1_g.": "mlp.w1.",
        "mlp.fc1_x.": "mlp.w2.",
        "mlp.norm.": "mlp.ffn_ln.",
    }
    if hasattr(model.blocks[0].mlp, "fc1_g"):
        names["mlp.fc2."] = "mlp.w3."
    state = renamed(model.state_dict(), names)
    return state | {"rope.freqs_cos": torch.ones(16, 16), "rope.freqs_sin": torch.ones(16, 16)}


METAS = {
    "attn_pool.mlp.fc1.": "attn_pool.mlp.c_fc.",
    "attn_pool.mlp.fc2.": "attn_pool.mlp.c_proj.",
    "attn_pool.norm.": "attn_pool.layernorm.",
    "attn_pool.latent": "attn_pool.probe",
    "attn_pool.proj.": "attn_pool.attn.out_proj.",
    "patch_embed.proj": "conv1",
    "pos_embed": "positional_embedding",
    "cls_token": "class_embedding",
    "norm_pre.": "ln_pre.",
    "blocks.": "transformer.resblocks.",
    "gamma_1": "ls_1.gamma",
    "gamma_2": "ls_2.gamma",
    "norm1.": "ln_1.",
    "norm2.": "ln_2.",
    "attn.qkv.": "attn.in_proj_",
    "attn.proj.": "attn.out_proj.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
}


def metas(model):
    """The state dict as PE's repository names it, inside a model of images and texts."""
    state = renamed(model.state_dict(), METAS)
    for key in [key for key in state if key.startswith("norm.")]:
        state[key.replace("norm.", "ln_post.")] = state.pop(key)
    state["class_embedding"] = state["class_embedding"].flatten()
    state["positional_embedding"] = state["positional_embedding"][0]
    for kind in ("weight", "bias"):
        parts = [state.pop(f"attn_pool.{part}.{kind}", None) for part in ("q", "kv")]
        if parts[0] is not None:
            state[f"attn_pool.attn.in_proj_{kind}"] = torch.cat(parts)
    tower = {f"visual.{key}": value for key, value in state.items()}
    return tower | {"text.transformer.x": torch.zeros(1), "visual.proj": torch.zeros(32, 7)}


def renamed(state, names):
    found = {}
    for key, value in state.items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        found[key] = value
    return found


def of_open_clip(model):
    return {f"visual.trunk.{key}": value for key, value in model.state_dict().items()}


EVA = {
    "dinov3": ("vit_small_patch16_dinov3_qkvb", facebooks_v3),
    "dinov3 without biases": ("vit_small_patch16_dinov3", facebooks_v3),
    "dinov3 with swiglu": ("vit_small_plus_patch16_dinov3_qkvb", facebooks_v3),
    "dinov3 in chunks": ("vit_small_patch16_dinov3_qkvb", facebooks_v3),
    "eva02": ("eva02_base_patch16_clip_224", baais),
    "eva02 without inner norms": ("eva02_tiny_patch14_224", baais),
    "pe": ("vit_pe_core_base_patch16_224", metas),
    "pe spatial": ("vit_pe_spatial_base_patch16_512", metas),
    "eva02 in open_clip": ("eva02_base_patch16_clip_224", of_open_clip),
}


@torch.no_grad()
@pytest.mark.parametrize("case", EVA)
def test_models_with_rotary_positions_in_their_own_keys(case):
    """What timm's filter makes of the tensors, timm's model has; ours has the same."""
    name, own_keys = EVA[case]
    model, ours = timms(name), backbone(name)
    state = own_keys(model)
    report = load_weights(ours, in_chunks(state) if case.endswith("chunks") else state)
    assert not report.missing
    own = model.state_dict()
    converted = eva.checkpoint_filter_fn(dict(state), model)
    model.load_state_dict({key: value for key, value in converted.items() if key in own})
    wanted = model.forward_features(pictures())
    torch.testing.assert_close(ours(pictures(), reduction=0).final.tokens, wanted, atol=2e-5, rtol=1e-4)


def one_block(state, number=1):
    place = f"blocks.{number}."
    return {key.removeprefix(place): value for key, value in state.items() if key.startswith(place)}


OF_AUTHORS = DINOV2 | {
    case: (name, {}) for case, (name, own_keys) in EVA.items() if own_keys in (facebooks_v3, baais)
}


@pytest.mark.parametrize("case", OF_AUTHORS)
def test_a_block_has_the_same_names_whoever_wrote_it(case):
    """By which an adapter knows its base. A bias that a mask takes away is none."""
    name, options = OF_AUTHORS[case]
    own_keys = EVA[case][1] if case in EVA else facebooks
    model = timms(name, **options)
    own, theirs = as_in_timm(one_block(model.state_dict())), as_in_timm(one_block(own_keys(model)))
    assert own.keys() == theirs.keys() and all(torch.equal(own[key], theirs[key]) for key in own)
    assert {"norm1.weight", "attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight"} <= own.keys()


def test_a_dinov3_with_biases_is_refused_where_they_have_no_place():
    state = facebooks_v3(timms("vit_small_patch16_dinov3_qkvb"))
    with pytest.raises(CheckpointError, match="'blocks.0.attn.q_bias' of the checkpoint .*qkv_bias=True"):
        load_weights(backbone("vit_small_patch16_dinov3"), state)


@torch.no_grad()
def test_a_trunk_in_an_open_clip_model_is_read(tmp_path):
    name = "vit_base_patch16_siglip_gap_224"
    model, ours = timms(name), backbone(name)
    state = {f"visual.trunk.{key}": value for key, value in model.state_dict().items()}
    save_file(state | {"text.x": torch.zeros(1)}, tmp_path / "clip.safetensors")
    assert not load_weights(ours, read_state_dict(tmp_path / "clip.safetensors")).missing
    wanted = model.forward_features(pictures())
    torch.testing.assert_close(ours(pictures(), reduction=0).final.tokens, wanted, atol=2e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("around", ["model.", "backbone.timm_model.", "module.backbone.timm_model.model."])
def test_timms_model_inside_another_is_read(around):
    """Such as TIMMBackbone of mmseg and mmpretrain."""
    model, ours = timms("vit_tiny_patch16_224"), backbone("vit_tiny_patch16_224")
    state = {around + key: value for key, value in model.state_dict().items()}
    assert not load_weights(ours, state).missing
    wanted = model.forward_features(pictures())
    torch.testing.assert_close(ours(pictures(), reduction=0).final.tokens, wanted, atol=2e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_224", "vit_pe_core_base_patch16_224"])
def test_pooling_by_attention_goes_to_the_head_that_has_it(name):
    model, ours = timms(name), backbone(name)
    task = ClassificationTask(ours, num_classes=32)
    whole = MultiTaskModel(ours, {"animals": task}, OBJECTIVES.build("supervised")).eval()
    keys = of_open_clip if "siglip" in name else metas
    report = load_weights(whole, keys(model))
    assert set(report.missing) == {"tasks.animals.head.weight", "tasks.animals.head.bias"}
    task.head.weight.copy_(torch.eye(32))
    task.head.bias.zero_()
    wanted = model.forward_head(model.forward_features(pictures()), pre_logits=True)
    torch.testing.assert_close(task.logits(ours(pictures(), reduction=0)), wanted, atol=2e-5, rtol=1e-4)
