"""Folders of transformers and timm: their weights, what their configs state, how they want their pixels."""

import json
from dataclasses import asdict

import pytest
import timm
import torch
import transformers as hf
from safetensors.torch import save_file
from tiny import generator
from torchvision.transforms.v2 import functional as F

from pipeline import build_backbone
from pipeline.backbone.weights.files import read_state_dict
from pipeline.backbone.weights.folders import LARGEST
from pipeline.backbone.weights.huggingface_config import USUAL, pixels_by, stated_by
from pipeline.backbone.weights.load import load_weights
from pipeline.backbone.weights.preprocessing import preprocessing_of
from pipeline.backbone.weights.stated import ACTIVATIONS, Stated
from pipeline.config.schema import AugmentConfig, BackboneConfig
from pipeline.data.augment.images import eval_transform
from pipeline.errors import CheckpointError, ConfigError
from pipeline.pixels import Normalisation

SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, patch_size=8)
OURS = dict(embed_dim=32, depth=2, num_heads=2, patch_size=8, mlp_ratio=2)


def vit(**config):
    torch.manual_seed(0)
    return hf.ViTModel(
        hf.ViTConfig(**SIZES | config, image_size=32, layer_norm_eps=1e-6), add_pooling_layer=False
    ).eval()


def backbone(**options):
    return build_backbone("vit_tiny_patch16_224", img_size=32, timm_options=OURS | options).eval()


@torch.no_grad()
@pytest.mark.parametrize("largest", ["1GB", "20KB"], ids=["one file", "several files"])
def test_a_folder_of_save_pretrained_is_read(largest, tmp_path):
    model, ours = vit(), backbone()
    model.save_pretrained(tmp_path, max_shard_size=largest)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (largest == "20KB")
    assert not load_weights(ours, read_state_dict(tmp_path)).missing
    images = torch.randn(2, 3, 32, 32)
    wanted = model(images).last_hidden_state
    torch.testing.assert_close(ours(images, reduction=0).final.tokens, wanted, atol=2e-5, rtol=1e-4)


def test_an_old_folder_with_a_file_of_torch_is_read(tmp_path):
    torch.save(vit().state_dict(), tmp_path / "pytorch_model.bin")
    assert not load_weights(backbone(), read_state_dict(tmp_path)).missing


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (dict(num_attention_heads=4), {}, "has 4 heads, the backbone 2; give backbone.options num_heads=4"),
        (dict(hidden_act="quick_gelu"), {}, "activation quick_gelu.*act_layer='quick_gelu'"),
        (dict(hidden_act="gelu_pytorch_tanh"), {}, "activation gelu_tanh.*act_layer='gelu_tanh'$"),
        ({}, dict(act_layer="quick_gelu"), "activation gelu, .*the timm name without 'quickgelu'"),
    ],
)
def test_what_shapes_do_not_tell_is_taken_from_the_config(config, options, message, tmp_path):
    vit(**config).save_pretrained(tmp_path)
    for where in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(CheckpointError, match=message):
            load_weights(backbone(**options), read_state_dict(where))


KINDS = {
    "vit": hf.ViTConfig,
    "deit": hf.DeiTConfig,
    "vit_mae": hf.ViTMAEConfig,
    "videomae": hf.VideoMAEConfig,
    "dinov2": hf.Dinov2Config,
    "dinov2_with_registers": hf.Dinov2WithRegistersConfig,
    "dinov3_vit": hf.DINOv3ViTConfig,
    "clip_vision_model": hf.CLIPVisionConfig,
    "siglip_vision_model": hf.SiglipVisionConfig,
    "siglip2_vision_model": hf.Siglip2VisionConfig,
}


@pytest.mark.parametrize("kind", USUAL)
def test_a_config_that_leaves_values_out_has_those_of_transformers(kind):
    whole = KINDS[kind]().to_dict()
    assert stated_by({"model_type": kind}) == stated_by(whole)
    assert stated_by(whole).heads == whole["num_attention_heads"]
    assert stated_by(whole).activation in ACTIVATIONS
    assert stated_by({"model_type": "both", "vision_config": {"model_type": kind}}) == stated_by(whole)
    assert stated_by(whole | {"num_attention_heads": 3, "hidden_act": "silu"}) == Stated(
        heads=3, activation="silu"
    )


@pytest.mark.parametrize("config", [{}, {"model_type": "swin"}, {"vision_config": 3}, {"model_type": []}])
def test_an_unknown_config_states_nothing(config):
    assert stated_by(config) == Stated()


PROCESSORS = {
    "vit": hf.ViTImageProcessor(),
    "vit without normalisation": hf.ViTImageProcessor(do_normalize=False),
    "vit to [-1, 1] by the scale": hf.ViTImageProcessor(
        rescale_factor=1 / 127.5, image_mean=[1.0] * 3, image_std=[1.0] * 3
    ),
    "deit": hf.DeiTImageProcessor(),
    "clip": hf.CLIPImageProcessor(),
    "siglip": hf.SiglipImageProcessor(),
    "dinov2": hf.BitImageProcessor(size={"shortest_edge": 256}),
    "dinov3": hf.DINOv3ViTImageProcessor(),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_those_of_the_processor(name, tmp_path):
    PROCESSORS[name].save_pretrained(tmp_path)
    found, whose = preprocessing_of(BackboneConfig(name="vit_tiny_patch16_224", weights=str(tmp_path)))
    assert whose == str(tmp_path)
    small = torch.randint(0, 256, (3, 150, 200), dtype=torch.uint8, generator=generator(0))
    picture, augment = F.resize(small, [300, 400]), AugmentConfig(**asdict(found))
    [ours] = Normalisation(found.mean, found.std)(eval_transform(augment, 224)(picture)[None])
    [theirs] = PROCESSORS[name](picture, return_tensors="pt")["pixel_values"]
    steps = (ours - theirs).abs().amax((1, 2)) * torch.tensor(found.std) * 255
    assert steps.max() < 2.5, "up to the roundings of the resize"


def test_a_file_in_the_folder_has_the_folders_pixels(tmp_path):
    PROCESSORS["siglip"].save_pretrained(tmp_path)
    save_file({"x": torch.zeros(1)}, path := tmp_path / "model.safetensors")
    found, whose = preprocessing_of(BackboneConfig(name="vit_tiny_patch16_224", weights=str(path)))
    assert (found.crop_mode, found.mean, whose) == ("squash", (0.5,) * 3, str(path))


def test_a_processor_of_images_and_texts_is_read_too(tmp_path):
    inside = json.loads(PROCESSORS["clip"].to_json_string())
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": inside}))
    found, _ = preprocessing_of(BackboneConfig(name="vit_tiny_patch16_224", weights=str(tmp_path)))
    assert found.crop_pct == 1.0 and found.mean == tuple(inside["image_mean"])


@pytest.mark.parametrize(
    ("old", "wanted"),
    [
        (dict(size=224), dict(crop_pct=1.0, crop_mode="squash")),
        (dict(size=256, do_center_crop=True, crop_size=224), dict(crop_pct=0.875, crop_mode="center")),
        (dict(size=224, resample=0, do_resize=False), {}),
    ],
)
def test_older_configs_of_processors_are_understood(old, wanted):
    found = pixels_by(dict(image_mean=[0.5] * 3, image_std=[0.5] * 3) | old)
    assert {name: found[name] for name in found if name.startswith("crop")} == wanted
    assert ("interpolation" in found) == ("resample" not in old)


def test_timms_own_folder_has_timms_pixels(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, **OURS)
    pixels = dict(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), interpolation="bilinear")
    own = pixels | dict(crop_pct=0.8, crop_mode="border")
    timm.models.save_for_hf(model, tmp_path, model_config=dict(pretrained_cfg=model.pretrained_cfg | own))
    found, _ = preprocessing_of(BackboneConfig(name="vit_tiny_patch16_224", weights=str(tmp_path)))
    assert (found.mean, found.std) == ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    assert (found.crop_pct, found.crop_mode, found.interpolation) == (0.8, "center", "bilinear")
    assert not load_weights(backbone(), read_state_dict(tmp_path)).missing


def write(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def listed(*names):
    return {"weight_map": {str(number): name for number, name in enumerate(names)}}


WRONG = {
    "nothing": (
        {},
        "has no weights: neither model.safetensors nor pytorch_model.bin, but nothing",
    ),
    "no weights": (dict(config__json={}), "but config.json; give the folder"),
    "a list that leads out": (
        dict(model__safetensors__index__json=listed("../secret.safetensors")),
        "names '../secret.safetensors', which is no such file beside it",
    ),
    "a list of another kind of file": (
        dict(model__safetensors__index__json=listed("weights.bin")),
        "names 'weights.bin'",
    ),
    "an empty list": (dict(model__safetensors__index__json={}), "names no files"),
    "a list that is none": (dict(model__safetensors__index__json=[]), "holds a list"),
    "a list that is no JSON": (dict(model__safetensors__index__json="{"), "is no JSON"),
    "a file that is gone": (
        dict(model__safetensors__index__json=listed("a.safetensors")),
        "no checkpoint file at .*a.safetensors",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_folder_without_weights_is_refused_with_what_it_holds(case, tmp_path):
    files, message = WRONG[case]
    save_file({"x": torch.zeros(1)}, tmp_path / "secret.safetensors")
    with pytest.raises(CheckpointError, match=message):
        read_state_dict(write(tmp_path / "model", **files))


def test_a_huge_list_is_not_read(tmp_path):
    with open(tmp_path / "model.safetensors.index.json", "wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(CheckpointError, match="has more than"):
        read_state_dict(tmp_path)


MEAN = dict(image_mean=[0.5] * 3, image_std=[0.5] * 3)


@pytest.mark.parametrize(
    "processor",
    [
        dict(image_mean=[0.5] * 3),
        MEAN | dict(image_mean=0.5),
        MEAN | dict(image_mean=["a", "b", "c"]),
        MEAN | dict(image_mean=[0.5]),
        MEAN | dict(rescale_factor=0),
        MEAN | dict(size=[224]),
        MEAN | dict(size={"width": 3}),
        MEAN | dict(size={"height": 0, "width": 0}),
        MEAN | dict(size=224, do_center_crop=True, crop_size="224"),
        MEAN | dict(resample=[3]),
        "{",
        [],
    ],
    ids=str,
)
def test_a_processor_that_none_wrote_is_refused(processor, tmp_path):
    write(tmp_path, preprocessor_config__json=processor)
    with pytest.raises(ConfigError, match="preprocessor_config.json"):
        found, _ = preprocessing_of(BackboneConfig(name="vit_tiny_patch16_224", weights=str(tmp_path)))
        raise AssertionError(found)
