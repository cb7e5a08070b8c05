"""Data takes from the backbone what a config does not say: the size of the crop, and how its weights want
their pixels."""

import logging
from dataclasses import asdict, replace

import open_clip
import pytest
import timm
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from timm.data import resolve_data_config
from torchvision.transforms.v2 import functional as F

from pipeline.backbone.build import model_facts
from pipeline.backbone.weights.preprocessing import complete_data, preprocessing_of
from pipeline.config.load import from_plain, load_config
from pipeline.config.schema import AugmentConfig, BackboneConfig, Preprocessing, RunConfig
from pipeline.data.augment.images import eval_transform
from pipeline.errors import ConfigError
from pipeline.pixels import Normalisation
from pipeline.train.setup import build_run, write_config

OPENAI = dict(mean=open_clip.OPENAI_DATASET_MEAN, std=open_clip.OPENAI_DATASET_STD)


SMALL = dict(name="vit_tiny_patch16_224.augreg_in21k_ft_in1k", pretrained=True)


def run_of(backbone: dict, **data) -> RunConfig:
    task = dict(
        type="classification", head=dict(num_classes=3), data=dict(schema="classification", train="-") | data
    )
    return from_plain(dict(backbone=backbone, tasks=dict(photos=task), train=dict(steps=1), output="-"))


def completed(backbone: dict, **data) -> RunConfig:
    config = run_of(backbone, **data)
    return complete_data(config, model_facts(config.backbone))


@pytest.mark.parametrize(
    "name",
    [
        "vit_base_patch16_224",
        "vit_small_patch16_384.augreg_in21k_ft_in1k",
        "deit_small_patch16_224.fb_in1k",
        "vit_small_patch14_dinov2",
    ]
    + [
        "vit_base_patch16_224.mae",
        "vit_base_patch16_clip_224.openai",
        "vit_base_patch16_clip_384.openai_ft_in12k_in1k",
    ],
)
def test_unset_values_are_those_of_timm(name):
    with torch.device("meta"):
        wanted = resolve_data_config(model=timm.create_model(name))
    data = completed(dict(name=name, pretrained=True)).tasks["photos"].data
    for field in ("mean", "std", "crop_pct", "crop_mode", "interpolation"):
        assert getattr(data.augment, field) == wanted[field]
    assert data.size == wanted["input_size"][1:] and isinstance(data.img_size, int)


@pytest.mark.parametrize(
    ("own", "wanted"), [({}, 0.5), (dict(tokenizer=dict(type="words")), 0.0)], ids=["classes", "captions"]
)
def test_captions_are_not_mirrored_unless_it_is_asked_for(own, wanted):
    assert completed(SMALL, **own).tasks["photos"].data.augment.hflip == wanted
    assert completed(SMALL, **own, augment=dict(hflip=0.3)).tasks["photos"].data.augment.hflip == 0.3


def test_explicit_values_stay_and_are_warned_of_where_weights_want_others(caplog):
    given = dict(mean=[0.4, 0.5, 0.6], std=[0.5, 0.5, 0.5], crop_pct=1.0)
    with caplog.at_level(logging.INFO):
        augment = completed(SMALL, augment=given).tasks["photos"].data.augment
    assert (augment.mean, augment.std, augment.crop_pct, augment.interpolation) == (
        (0.4, 0.5, 0.6),
        (0.5, 0.5, 0.5),
        1.0,
        "bicubic",
    )
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "tasks.photos.data.augment has mean (0.4, 0.5, 0.6), crop_pct 1.0, where vit_tiny" in warning
    assert "mean (0.5, 0.5, 0.5), crop_pct 0.9" in warning and "std" not in warning


@pytest.mark.parametrize(
    ("backbone", "augment"),
    [
        (SMALL, dict(crop_pct=1.0)),
        (SMALL, dict(mean=[0.5, 0.5, 0.5])),
        (SMALL | dict(pretrained=False), dict(mean=[0.1, 0.1, 0.1])),
    ],
    ids=["only the crop", "the same", "weights that are drawn"],
)
def test_what_is_no_mistake_is_not_warned_of(backbone, augment, caplog):
    completed(backbone, augment=augment)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize(("img_size", "wanted"), [(None, 224), (112, 112), ((64, 96), (64, 96))], ids=str)
def test_an_unset_size_is_the_backbones(img_size, wanted, caplog):
    assert completed(SMALL | dict(img_size=img_size)).tasks["photos"].data.img_size == wanted
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("size", [112, (224, 112)], ids=str)
def test_a_size_that_is_not_the_backbones_stays_and_is_warned_of(size, caplog):
    assert completed(SMALL, img_size=size).tasks["photos"].data.img_size == size
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith(
        f"tasks.photos.data.img_size is {size}, but the backbone's position embedding is made for 224x224"
    )


@pytest.mark.parametrize(
    ("weights", "wanted"),
    [
        ("coca_ViT-B-32@mscoco_finetuned_laion2b_s13b_b90k", OPENAI),
        ("ViT-B-16@openai", OPENAI),
        ("ViT-B-16-SigLIP@webli", dict(mean=(0.5,) * 3, std=(0.5,) * 3, crop_mode="squash")),
    ],
)
def test_open_clips_weights_see_the_pixels_of_open_clip(weights, wanted):
    found, whose = preprocessing_of(
        BackboneConfig(name="vit_base_patch16_224", weights=f"open_clip:{weights}")
    )
    assert (
        found == Preprocessing(**wanted, crop_pct=1.0, interpolation="bicubic")
        and whose == f"open_clip:{weights}"
    )
    published = open_clip.get_pretrained_cfg(*weights.split("@"))
    pixels = {
        name: published[name] for name in ("mean", "std", "interpolation", "resize_mode") if name in published
    }
    theirs = image_transform_v2(PreprocessCfg(size=40, **pixels), is_train=False)
    augment, picture = AugmentConfig(**asdict(found)), torch.randint(0, 256, (3, 60, 90), dtype=torch.uint8)
    [ours] = Normalisation(found.mean, found.std)(eval_transform(augment, 40)(picture)[None])
    assert (ours - theirs(F.to_pil_image(picture))).abs().max() < 2.5 / 255 / 0.26, (
        "up to the rounding of two resizes"
    )


def test_a_file_of_an_open_clip_model_is_taken_for_one_of_its_published_weights():
    siglip, _ = preprocessing_of(
        BackboneConfig(name="vit_base_patch16_224", weights="open_clip:ViT-B-16-SigLIP@here.bin")
    )
    clip, _ = preprocessing_of(
        BackboneConfig(name="vit_base_patch16_224", weights="open_clip:coca_base@here.bin")
    )
    assert siglip.mean == (0.5, 0.5, 0.5) and clip.mean == OPENAI["mean"]
    with pytest.raises(ConfigError, match="unknown open_clip model 'ViT-B-17'"):
        preprocessing_of(BackboneConfig(name="vit_base_patch16_224", weights="open_clip:ViT-B-17@openai"))


def test_a_run_keeps_what_it_took_and_passes_it_on(tiny_run, tmp_path):
    """The resolved config has values; a run that starts from this one's weights has the same."""
    run = build_run(tiny_run(data=dict(img_size=None), augment=dict(mean=[0.1, 0.2, 0.3])), "none")
    write_config(run)
    saved = load_config(tmp_path / "run" / "config.json")
    data = saved.tasks["digits"].data
    assert data.img_size == 32 and data.augment.preprocessing == Preprocessing(
        mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5), crop_pct=1.0, interpolation="bicubic"
    )
    assert next(iter(run.streams["digits"])).images.shape[-2:] == (32, 32)
    for weights in (tmp_path / "run", tmp_path / "run" / "checkpoints" / "step_00000001"):
        found, whose = preprocessing_of(BackboneConfig(name="vit_tiny_patch16_224", weights=str(weights)))
        assert found == data.augment.preprocessing and whose == str(weights)
    assert complete_data(saved, model_facts(saved.backbone)) == saved, "what is resolved stays as it is"


def test_clips_have_videomaes_pixels_unless_timms_weights_are_inflated():
    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    clips = BackboneConfig(name=name, frames=16)
    assert preprocessing_of(clips) == (Preprocessing(), None)
    assert preprocessing_of(replace(clips, weights="nothing.pth")) == (Preprocessing(), "VideoMAE")
    found, whose = preprocessing_of(replace(clips, pretrained=True))
    assert found.mean == (0.5, 0.5, 0.5) and whose == name
    assert completed(dict(name=name, frames=16, img_size=[64, 96])).tasks["photos"].data.img_size == (64, 96)
