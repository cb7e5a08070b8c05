"""Which timm models are taken, how the others are refused, and whose keys a backbone has."""

import pytest
import torch
from tiny import MERGING, PREFIXES, SIZES, images, tiny_vit

from pipeline import build_backbone
from pipeline.backbone.build import create_vit, model_facts
from pipeline.config.schema import BackboneConfig
from pipeline.errors import ConfigError


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("variant", ["none", "tome", "dtem"])
def test_keys_are_those_of_timm_and_the_metric_embeddings(variant, prefix):
    name, timm_options = PREFIXES[prefix]
    keys = set(create_vit(name, img_size=64, timm_options=SIZES | timm_options).state_dict())
    metric = (
        {f"blocks.{i}.metric.{kind}" for i in range(3) for kind in ("weight", "bias")}
        if variant == "dtem"
        else set()
    )
    assert (
        set(tiny_vit(variant, prefix=prefix).state_dict())
        == {key for key in keys if not key.startswith(("fc_norm", "attn_pool"))} | metric
    )


@pytest.mark.parametrize(("dim", "heads", "width"), [(192, 3, 64), (384, 6, 64), (1024, 16, 128)])
def test_the_embedding_is_as_wide_as_a_head_and_twice_that_in_large_models(dim, heads, width):
    with torch.device("meta"):
        sizes = {"depth": 1, "embed_dim": dim, "num_heads": heads}
        assert tiny_vit("dtem", timm_options=sizes).blocks[0].metric.out_features == width
        assert (
            build_backbone("deit_tiny_patch16_224", policy="dtem", embed_dim=24).blocks[0].metric.out_features
            == 24
        )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("swin_tiny_patch4_window7_224", "SwinTransformer"),
        ("resnet18", "ResNet"),
        ("vit_dwee_patch16_reg1_gap_256", "its attention is DiffAttention"),
        ("vit_dpwee_patch16_reg1_gap_256", "its blocks are DiffParallelScalingBlock"),
        ("vit_relpos_small_patch16_224", "VisionTransformerRelPos"),
        ("deit_smol_patch16_224", "did you mean 'deit_small_patch16_224'"),
    ],
)
def test_other_models_are_refused_with_the_reason(name, reason):
    with pytest.raises(ConfigError, match=reason):
        with torch.device("meta"):
            build_backbone(name)


@pytest.mark.parametrize(
    "arguments",
    [
        {"policy": "tomme"},
        {"policy": "tome", "tau1": 0.1},
        {"reduction": -1},
        {"timm_options": {"embed_dimm": 3}},
        {"timm_options": {"embed_dim": 50, "num_heads": 3}},
        {"timm_options": {"patch_drop_rate": 0.5}},
        {"timm_options": {"patch_size": 0}},
        {"timm_options": {"embed_dim": 0}},
        {"timm_options": {"embed_dim": 10**6}},
        {"timm_options": {"depth": 10**5}},
        {"timm_options": {"mlp_ratio": "wide"}},
        {"timm_options": {"depth": 0}},
        {"timm_options": {"in_chans": 1}},
        {"timm_options": {"img_size": 32}},
        {"img_size": -32},
        {"proportional_attention": "sometimes"},
        {"policy": "dtem", "embed_dim": 0},
        {"policy": "dtem", "candidates": 1.5},
    ],
    ids=str,
)
def test_wrong_arguments_are_config_errors(arguments):
    with pytest.raises(ConfigError):
        build_backbone("deit_tiny_patch16_224", **({"timm_options": {"depth": 1}} | arguments))


def test_an_input_that_does_not_divide_is_refused_with_the_nearest_that_does():
    with pytest.raises(ConfigError, match="66x64 does not divide by the patch 8x8; nearest: 64x64"):
        tiny_vit("tome")(torch.zeros(1, 3, 66, 64))


def test_a_reduction_that_is_set_is_used_and_one_that_is_given_goes_before_it():
    model = tiny_vit("tome", reduction=4).eval()
    with torch.no_grad():
        assert model(images()).final.num_active == 65 - 12
        model.set_reduction((6, -1.0))
        assert model(images()).final.num_active == 65 - 12 - 6
        assert model(images(), reduction=0).final.num_active == 65
        assert model(images()).final.num_active == 65 - 12 - 6
        with pytest.raises(ConfigError):
            model.set_reduction([1, 2, 3, 4])


@pytest.mark.parametrize("variant", MERGING)
def test_relaxed_can_be_asked_for_in_either_mode(variant):
    model = tiny_vit(variant)
    with torch.no_grad():
        model.train()
        hard = model(images(), relaxed=False).final
        assert hard.tokens.shape[1] == hard.num_active == 41
        relaxed = model.eval()(images(), relaxed=True).final
        assert relaxed.tokens.shape[1] == (65 if model.policy.supports_relaxed else 41)


def test_shapes_can_be_asked_without_memory():
    facts = model_facts(BackboneConfig(name="vit_large_patch14_reg4_dinov2", img_size=518))
    assert (facts.patch, facts.depth, facts.num_prefix, facts.grid) == ((14, 14), 24, 5, (37, 37))


@pytest.mark.parametrize(
    "option",
    [
        "checkpoint_path",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "pretrained",
        "cache_dir",
        "features_only",
    ],
)
def test_options_of_timms_loader_do_not_pass(option, tmp_path):
    """They would read files and URLs that a config of data, such as a stranger's config.json, names."""
    with pytest.raises(ConfigError, match=f"unknown backbone option '{option}'"):
        build_backbone("deit_tiny_patch16_224", timm_options={"depth": 1, option: str(tmp_path)})


@pytest.mark.parametrize("shape", [(2, 1, 64, 64), (3, 64, 64), (2, 3, 0, 64), (2, 3, 60, 64)])
def test_images_of_another_shape_are_config_errors(shape):
    with pytest.raises(ConfigError):
        tiny_vit("tome")(torch.zeros(shape))
