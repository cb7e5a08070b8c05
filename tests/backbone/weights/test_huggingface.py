"""Models of transformers in a merging backbone: at r = 0 the tokens are theirs, in either style of keys."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers as hf
from safetensors.torch import load_file
from tiny import SEED, generator
from torch import nn

from pipeline import build_backbone, load_adapter, patch, save_adapter
from pipeline.backbone.adapters.digest import base_digest
from pipeline.backbone.weights.huggingface import huggingface_weights
from pipeline.backbone.weights.huggingface_config import stated_by
from pipeline.backbone.weights.load import load_weights
from pipeline.backbone.weights.stated import check_stated
from pipeline.errors import CheckpointError
from pipeline.model import MultiTaskModel
from pipeline.objectives import OBJECTIVES
from tasks.classification import ClassificationTask

WIDTH, DEPTH, HEADS, PATCH, IMG = 32, 2, 2, 8, 32
THEIRS = dict(
    hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS, image_size=IMG, patch_size=PATCH
)
TANH = dict(act_layer="gelu_tanh")
"""timm's SigLIP of base width has the exact GELU, the original one the approximation by tanh."""
MLP = dict(intermediate_size=2 * WIDTH)
OURS = dict(embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, patch_size=PATCH, mlp_ratio=2)


def drawn(model: nn.Module) -> nn.Module:
    """The model with every weight drawn anew, also norms, biases and tokens that start at 0 or 1."""
    torch.manual_seed(SEED)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def vit(**config):
    return hf.ViTModel(hf.ViTConfig(**THEIRS, **MLP, layer_norm_eps=1e-6, **config))


def dinov2(config=hf.Dinov2Config, kind=hf.Dinov2Model, **options):
    return kind(config(**THEIRS | options, mlp_ratio=2))


def dinov3(**config):
    return hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**THEIRS, **MLP, num_register_tokens=4, **config))


CASES = {
    "vit": (vit, "vit_tiny_patch16_224", {}),
    "vit without biases": (lambda: vit(qkv_bias=False), "vit_tiny_patch16_224", dict(qkv_bias=False)),
    "deit distilled": (
        lambda: hf.DeiTModel(hf.DeiTConfig(**THEIRS, **MLP, layer_norm_eps=1e-6)),
        "deit_tiny_distilled_patch16_224",
        {},
    ),
    "dinov2": (dinov2, "vit_small_patch14_dinov2", {}),
    "dinov2 with swiglu": (
        lambda: dinov2(use_swiglu_ffn=True),
        "vit_giant_patch14_dinov2",
        dict(mlp_ratio=3),
    ),
    "dinov2 with registers": (
        lambda: dinov2(hf.Dinov2WithRegistersConfig, hf.Dinov2WithRegistersModel),
        "vit_small_patch14_reg4_dinov2",
        {},
    ),
    "dinov3": (dinov3, "vit_small_patch16_dinov3_qkvb", {}),
    "dinov3 with swiglu": (
        lambda: dinov3(use_gated_mlp=True, hidden_act="silu"),
        "vit_small_plus_patch16_dinov3_qkvb",
        {},
    ),
    "dinov3 without biases": (
        lambda: dinov3(query_bias=False, value_bias=False),
        "vit_small_patch16_dinov3",
        {},
    ),
    "siglip": (
        lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**THEIRS, **MLP)),
        "vit_base_patch16_siglip_gap_224",
        TANH,
    ),
    "clip": (
        lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**THEIRS, **MLP)),
        "vit_base_patch32_clip_quickgelu_224",
        {},
    ),
}


def backbone(name, policy="none", **options):
    torch.manual_seed(SEED + 1)
    return build_backbone(name, policy=policy, img_size=IMG, timm_options=OURS | options).eval()


def pictures(size=IMG):
    return torch.randn(2, 3, size, size, generator=generator(2))


def saved(model, folder):
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


@torch.no_grad()
@pytest.mark.parametrize("style", ["in memory", "saved"])
@pytest.mark.parametrize("case", CASES)
def test_tokens_are_those_of_transformers(case, style, tmp_path):
    build, name, options = CASES[case]
    model, ours = drawn(build()), backbone(name, **options)
    state = model.state_dict() if style == "in memory" else saved(model, tmp_path)
    report = load_weights(ours, state)
    assert not report.missing, report
    images = pictures()
    wanted = model(images).last_hidden_state
    if case == "clip":
        wanted = model.get_submodule("post_layernorm")(wanted)
    torch.testing.assert_close(ours(images, reduction=0).final.tokens, wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("case", sorted(CASES.keys() - {"deit distilled"}))
def test_an_adapter_fits_one_model_in_both_libraries(case, tmp_path):
    """Taught on timm's it is loaded into that of transformers, and the other way round."""
    build, name, options = CASES[case]
    theirs, ours = drawn(build()), backbone(name, policy="dtem", **options)
    load_weights(ours, theirs.state_dict())
    save_adapter(ours, tmp_path / "timm")
    patched: Any = patch(theirs, reduction=3, adapter=tmp_path / "timm")
    wanted = load_adapter(tmp_path / "timm").tensors
    assert all(
        torch.equal(block.metric.weight, wanted[f"blocks.{number}.metric.weight"])
        for number, block in enumerate(patched.merging_blocks)
    )
    save_adapter(patched, tmp_path / "transformers")
    load_adapter(tmp_path / "transformers").apply_to(ours)
    own = base_digest(ours.blocks)
    for key, tensor in patched.merging_blocks[-1].named_parameters():
        if key.endswith(("q_proj.weight", "fc2.weight", "down_proj.weight", "norm2.bias")):
            with torch.no_grad():
                tensor[0] += 1
                assert base_digest(patched.merging_blocks) != own, key
                tensor[0] -= 1


TEXT = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=9)
AROUND = {
    "clip": (
        lambda: hf.CLIPModel(hf.CLIPConfig(text_config=TEXT, vision_config=THEIRS | MLP)),
        "vit_base_patch32_clip_quickgelu_224",
        "text_model.encoder.layers.0.mlp.fc1.weight",
    ),
    "siglip": (
        lambda: hf.SiglipModel(hf.SiglipConfig(text_config=TEXT, vision_config=THEIRS | MLP)),
        "vit_base_patch16_siglip_gap_224",
        "text_model.encoder.layers.0.mlp.fc1.weight",
    ),
    "mae with its decoder": (
        lambda: hf.ViTMAEForPreTraining(
            hf.ViTMAEConfig(
                **THEIRS, **MLP, decoder_hidden_size=WIDTH, decoder_num_hidden_layers=1, mask_ratio=0.0
            )
        ),
        "vit_tiny_patch16_224",
        "decoder.decoder_layers.0.mlp.fc1.weight",
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("case", AROUND)
def test_of_a_larger_model_the_image_tower_is_taken_and_the_rest_is_left(case):
    build, name, elsewhere = AROUND[case]
    model, ours = drawn(build()), backbone(name, **(TANH if case == "siglip" else {}))
    report = load_weights(ours, model.state_dict())
    assert not report.missing and elsewhere in report.left
    if case == "mae with its decoder":
        # it shuffles the patches, so the class token alone can be compared
        found, wanted = ours(pictures(), reduction=0).final.tokens[:, 0], model.vit(pictures())[0][:, 0]
    else:
        tower = model.vision_model
        wanted = tower(pictures()).last_hidden_state
        wanted = tower.post_layernorm(wanted) if case == "clip" else wanted
        found = ours(pictures(), reduction=0).final.tokens
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("style", ["in memory", "saved"])
def test_attention_pooling_finds_timms_places(style, tmp_path):
    model = drawn(hf.SiglipVisionModel(hf.SiglipVisionConfig(**THEIRS, **MLP)))
    state = model.state_dict() if style == "in memory" else saved(model, tmp_path)
    given = huggingface_weights(state, backbone("vit_base_patch16_siglip_gap_224"))
    pooled = timm.create_model("vit_base_patch16_siglip_224", img_size=IMG, **OURS | TANH).eval()
    pooled.load_state_dict(given)
    wanted = model(pictures()).pooler_output
    torch.testing.assert_close(pooled(pictures()), wanted, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_patches_that_a_naflex_model_flattens_find_their_places():
    config = {key: value for key, value in THEIRS.items() if key != "image_size"}
    model = drawn(hf.Siglip2VisionModel(hf.Siglip2VisionConfig(**config, **MLP, num_patches=16)))
    ours = backbone("vit_base_patch16_siglip_gap_224", **TANH)
    assert not load_weights(ours, model.state_dict()).missing
    side = IMG // PATCH
    patches = pictures().reshape(2, 3, side, PATCH, side, PATCH).permute(0, 2, 4, 3, 5, 1)
    patches = patches.reshape(2, side**2, -1)
    whole = torch.ones(2, side**2, dtype=torch.long)
    wanted = model(patches, whole, torch.tensor([[side, side]] * 2)).last_hidden_state
    torch.testing.assert_close(ours(pictures(), reduction=0).final.tokens, wanted, atol=2e-5, rtol=1e-4)


def classifier(name, num_classes=5):
    ours = backbone(name)
    task = ClassificationTask(ours, num_classes=num_classes)
    return MultiTaskModel(ours, {"animals": task}, OBJECTIVES.build("supervised")).eval()


@torch.no_grad()
def test_a_classifier_goes_to_the_head_of_the_task():
    config = hf.ViTConfig(**THEIRS, **MLP, num_labels=5, layer_norm_eps=1e-6)
    theirs = drawn(hf.ViTForImageClassification(config))
    model = classifier("vit_tiny_patch16_224")
    assert not load_weights(model, theirs.state_dict()).missing
    logits = model.tasks["animals"].logits(model.backbone(pictures(), reduction=0))
    torch.testing.assert_close(logits, theirs(pictures()).logits, atol=2e-5, rtol=1e-4)


def test_a_classifier_of_two_vectors_is_left():
    theirs = dinov2(kind=hf.Dinov2ForImageClassification, num_labels=5)
    report = load_weights(classifier("vit_small_patch14_dinov2"), theirs.state_dict())
    assert "classifier.weight" in report.left
    assert "tasks.animals.head.weight" in report.missing


@torch.no_grad()
def test_positions_of_another_grid_are_resampled():
    small, large = (
        backbone("vit_small_patch14_reg4_dinov2"),
        dinov2(hf.Dinov2WithRegistersConfig, hf.Dinov2WithRegistersModel, image_size=2 * IMG),
    )
    report = load_weights(small, large.state_dict())
    assert report.grids == ((8, 8), (4, 4)) and not report.missing


ANOTHER = {
    "width": (dict(hidden_size=48), r"'\w+' is \(1, 1, 48\).*embed_dim=48, patch_size=8, depth=2"),
    "patch": (dict(patch_size=16), r"'patch_embed.proj.weight' is \(32, 3, 16, 16\).*patch_size=16"),
    "shallower": (dict(num_hidden_layers=1), r"fill \d+% of the backbone's numbers, and not blocks.1"),
    "mlp": (dict(intermediate_size=48), r"'blocks.0.mlp.fc1.weight' is \(48, 32\)"),
}


def test_biases_of_keys_that_timms_blocks_lack_are_refused():
    """DINOv3's are 0. Rotated by their position they would count."""
    theirs = drawn(dinov3(key_bias=True))
    with pytest.raises(CheckpointError, match="'blocks.0.attn.k_proj.bias' of the checkpoint has no place"):
        load_weights(backbone("vit_small_patch16_dinov3_qkvb"), theirs.state_dict())


@pytest.mark.parametrize("case", ANOTHER)
def test_another_architecture_is_refused_with_what_the_checkpoint_is(case):
    config, message = ANOTHER[case]
    model = hf.ViTModel(hf.ViTConfig(**THEIRS | MLP | config))
    ours = backbone("vit_tiny_patch16_224")
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_weights(ours, model.state_dict())
    assert all(torch.equal(value, before[key]) for key, value in ours.state_dict().items())


def test_blocks_with_parts_that_the_backbone_lacks_are_refused():
    """Without its layer scale a DINOv2 would give other numbers."""
    with pytest.raises(CheckpointError, match="'blocks.0.ls1.gamma' of the checkpoint .*init_values=1e-5"):
        load_weights(backbone("vit_tiny_patch16_224"), dinov2().state_dict())
    with pytest.raises(CheckpointError, match="'blocks.0.ls1.gamma' of the backbone is not in"):
        load_weights(backbone("vit_small_patch14_dinov2"), vit().state_dict())


PATCHES = "embeddings.patch_embeddings.projection.weight"


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4)], ids=str)
def test_tensors_of_strange_shapes_are_refused(shape):
    state = vit().state_dict()
    for key in ("layers.1.attention.k_proj.weight", "embeddings.cls_token", PATCHES):
        with pytest.raises(CheckpointError):
            load_weights(backbone("vit_tiny_patch16_224"), state | {key: torch.zeros(shape)})


BASE = dict(hidden_size=768, num_hidden_layers=2, num_attention_heads=12, intermediate_size=3072)
SMALL = dict(hidden_size=384, num_hidden_layers=2, num_attention_heads=6)
PUBLISHED = {
    "google/vit-base-patch16-224": lambda: hf.ViTModel(hf.ViTConfig(**BASE)),
    "facebook/deit-base-distilled-patch16-224": lambda: hf.DeiTModel(hf.DeiTConfig(**BASE)),
    "facebook/vit-mae-base": lambda: hf.ViTMAEModel(hf.ViTMAEConfig(**BASE)),
    "facebook/dinov2-small": lambda: hf.Dinov2Model(hf.Dinov2Config(**SMALL, image_size=518, patch_size=14)),
    "facebook/dinov2-with-registers-small": lambda: hf.Dinov2WithRegistersModel(
        hf.Dinov2WithRegistersConfig(**SMALL, image_size=518, patch_size=14)
    ),
    "facebook/dinov3-vits16-pretrain-lvd1689m": lambda: hf.DINOv3ViTModel(
        hf.DINOv3ViTConfig(**SMALL, intermediate_size=1536, num_register_tokens=4)
    ),
    "openai/clip-vit-base-patch32": lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**BASE, patch_size=32)),
    "google/siglip-base-patch16-224": lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**BASE)),
}
"""Name on the hub -> a model of its sizes, as its card has them, but of two blocks."""
PAGE = (Path(__file__).parents[3] / "docs/configuration.md").read_text()


@pytest.mark.parametrize("where", PUBLISHED)
def test_the_page_gives_a_published_model_a_name_of_timm_that_fits(where):
    """Heads and activation too; on the meta device, as they are large."""
    [(name, options)] = re.findall(rf"^\| {where} \| `(\w+)`(?:, `act_layer=\"(\w+)\"`)? \|$", PAGE, re.M)
    with torch.device("meta"):
        model = PUBLISHED[where]()
        ours = build_backbone(name, timm_options=dict(depth=2) | (dict(act_layer=options) if options else {}))
    given = huggingface_weights(model.state_dict(), ours)
    assert {key: value.shape for key, value in ours.state_dict().items()}.items() <= {
        key: value.shape for key, value in given.items()
    }.items()
    check_stated(stated_by(model.config.to_dict()), ours)


def test_the_page_names_no_other_published_models():
    assert set(re.findall(r"^\| ([\w-]+/[\w-]+) \| `\w+`", PAGE, re.M)) == PUBLISHED.keys()
