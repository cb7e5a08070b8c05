"""Clips as samples: which changes all frames share, which clips an evaluation has, and what is no clip."""

import random
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from shardkit import config, image, write_tar
from videokit import clip_members, write_clips

from pipeline.config.schema import AugmentConfig, DataConfig
from pipeline.data.augment.clips import alike, eval_crops
from pipeline.data.augment.images import eval_transform, train_transform
from pipeline.data.augment.mixing import BatchMixer
from pipeline.data.make.existing import index_shards
from pipeline.data.members.decode import decode_image
from pipeline.data.samples.protocol import DATASETS
from pipeline.data.shards.find import load_manifest
from pipeline.data.stream import build_eval_loader, build_stream
from pipeline.data.targets import ClipTargets
from pipeline.errors import ConfigError, SampleError
from pipeline.interfaces import Batch
from pipeline.rng import seed_generators

EVERY = AugmentConfig(
    crop_scale=(0.3, 1.0),
    vflip=0.5,
    rand_augment="rand-m9-mstd0.5-inc1",
    color_jitter=0.3,
    grayscale=0.3,
    random_erasing=0.9,
)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("clips"))


def data(folder, **options) -> DataConfig:
    return config(folder, **{"schema": "video_classification", "frames": 4, "augment": EVERY} | options)


def still(folder, count: int = 5):
    """A set of clips whose frames are all the same picture."""
    members = []
    for n in range(count):
        picture = image(n, (20, 24))
        members += [(f"{n}.{number:03d}.png", picture) for number in range(6)] + [(f"{n}.cls", b"1")]
    index_shards([str(write_tar(folder / "part-0.tar", members))], folder, classes=["a", "b"])
    return folder


def batches(config: DataConfig, count: int = 4):
    made = build_stream("t", config, seed=3, rank=0, world_size=1)
    return list(islice(made, count))


@pytest.mark.parametrize("augment", [EVERY, replace(EVERY, on_device=True), AugmentConfig(pad=2)])
def test_all_frames_of_a_clip_are_changed_alike(augment, tmp_path):
    """Frames that were the same picture stay the same, and another sample is changed otherwise."""
    for batch in batches(data(still(tmp_path), augment=augment, batch_size=5)):
        assert batch.images.dtype == torch.uint8 and batch.images.shape == (5, 4, 3, 8, 8)
        seen = batch.to("cpu").images
        assert seen.dtype == torch.float32 and (seen == seen[:, :1]).all()


def test_colours_are_changed_on_the_device_as_in_the_worker(clips):
    augment = AugmentConfig(crop_scale=(0.5, 1), rand_augment="rand-m9-n3-inc1", grayscale=0.3)
    here = batches(data(clips, augment=augment))
    there = batches(data(clips, augment=replace(augment, on_device=True)))
    for one, other in zip(here, there, strict=True):
        assert one.keys == other.keys
        difference = (one.to("cpu").images - other.to("cpu").images).abs()
        assert difference.mean() < 0.1, "in standard deviations of pixels"
    assert any(batch.normalisation.changes is not None for batch in there)


def test_the_frames_of_a_clip_are_those_of_its_sample(clips):
    """Whole pictures in their own size are the pixels that are stored, in order."""
    plain = AugmentConfig(crop_scale=(1, 1), hflip=0.0)
    for batch in batches(data(clips, augment=plain, frames=6, img_size=(12, 16))):
        for key, clip in zip(batch.keys, batch.images, strict=True):
            stored = [
                decode_image(png) for name, png in clip_members(key, 0, 6, seed=int(key)) if "png" in name
            ]
            assert torch.equal(clip, torch.stack(stored))


def test_draws_go_on_where_one_image_leaves_them():
    frame = torch.randint(0, 256, (3, 20, 24), dtype=torch.uint8)
    change, after = train_transform(EVERY, 8), []
    for frames in ([frame], [frame] * 5):
        seed_generators(1)
        clip = alike(change, frames)
        assert (clip == clip[0]).all()
        after.append((random.random(), np.random.rand(), torch.rand(1).item()))
    seed_generators(1)
    assert torch.equal(change(frame), clip[0])
    assert after[0] == after[1] == (random.random(), np.random.rand(), torch.rand(1).item())


def test_mixing_treats_all_frames_alike():
    clips = torch.arange(4.0)[:, None, None, None, None].expand(4, 5, 3, 8, 8).contiguous()
    labels = torch.arange(4)
    for options in (
        dict(mixup=0.8),
        dict(cutmix=1.0),
        dict(cutmix=1.0, mix_mode="elem"),
        dict(cutmix_minmax=(0.2, 0.8)),
    ):
        mixer = BatchMixer(AugmentConfig(**options), 4, ClipTargets)
        mixed = [mixer(Batch("t", clips, ClipTargets(labels)), 0, step) for step in range(8)]
        assert all((batch.images == batch.images[:, :1, :1]).all() for batch in mixed)
        assert any((batch.images != clips).any() for batch in mixed)
        for batch in mixed:
            shares = batch.targets.labels
            assert batch.images.shape == clips.shape and torch.allclose(shares.sum(1), torch.ones(4))
            expected = shares @ torch.arange(4.0)
            torch.testing.assert_close(batch.images.mean((1, 2, 3, 4)), expected, atol=1e-4, rtol=0)


def test_an_evaluation_has_one_clip_or_several_clips_and_crops(clips):
    (one,) = build_eval_loader("t", data(clips, eval_batch_size=8), rank=0, world_size=1)
    assert one.images.shape == (8, 4, 3, 8, 8) and isinstance(one.targets, ClipTargets)
    options = dict(eval_clips=3, eval_crops=3, stride=1, eval_batch_size=8)
    (several,) = build_eval_loader("t", data(clips, **options), rank=0, world_size=1)
    assert several.images.shape == (8, 9, 4, 3, 8, 8) and several.num_images == 8
    again = next(iter(build_eval_loader("t", data(clips, **options, workers=1), rank=0, world_size=1)))
    assert torch.equal(several.images, again.images)
    starts = several.images.unflatten(1, (3, 3))
    assert torch.equal(starts[:, 0, :, 1:], starts[:, 1, :, :-1]), (
        "six frames hold stretches from 0, 1 and 2 on"
    )
    assert several.to("cpu").images.dtype == torch.float32


@pytest.mark.parametrize("size", [(20, 50), (50, 20), (33, 32)])
def test_three_crops_lie_from_end_to_end(size):
    frame = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    augment = AugmentConfig(crop_pct=1.0)
    crops, (middle,) = eval_crops(augment, 16, 3)(frame), eval_crops(augment, 16, 1)(frame)
    assert crops.shape == (3, 3, 16, 16) and torch.equal(middle, eval_transform(augment, 16)(frame))
    assert (crops[1].float() - middle.float()).abs().mean() < 30, "perhaps one pixel beside it"
    turned = eval_crops(augment, 16, 3)(frame.flip(-1, -2)).flip(0, -1, -2)
    assert (turned.float() - crops.float()).abs().max() <= 2
    with pytest.raises(ConfigError, match="'squash' each would be the whole picture; give 1"):
        eval_crops(replace(augment, crop_mode="squash"), 16, 3)


def test_jpeg_frames_may_be_decoded_to_a_smaller_size(tmp_path):
    members = [(f"{n}.{f:03d}.jpg", image(n, (64, 64), "JPEG")) for n in range(3) for f in range(4)]
    members = sorted([*members, *((f"{n}.cls", b"0") for n in range(3))])
    index_shards([str(write_tar(tmp_path / "part-0.tar", members))], tmp_path, classes=["a"])
    plain = dict(augment=AugmentConfig(crop_scale=(1, 1), hflip=0.0), batch_size=3)
    (whole,), (scaled,) = (batches(data(tmp_path, decode=how, **plain), 1) for how in ("worker", "scaled"))
    assert (whole.images.float() - scaled.images.float()).abs().mean() < 8


def test_what_is_no_clip_is_a_bad_sample_and_another_takes_its_place(tmp_path):
    members = clip_members("good", 0, 4, seed=1)
    members += [("broken.000.png", b"none"), ("broken.001.png", b"none"), ("broken.cls", b"0")]
    members += [("none.cls", b"0")]
    members += [
        ("sizes.000.png", image(1, (9, 9))),
        ("sizes.001.png", image(1, (9, 10))),
        ("sizes.cls", b"0"),
    ]
    members += [("twice.1.png", image(1)), ("twice.01.png", image(1)), ("twice.cls", b"0")]
    members += [("one.000.png", image(1)), ("one.cls", b"0")]
    index_shards([str(write_tar(tmp_path / "part-0.tar", members))], tmp_path, classes=["a"])
    made = build_stream("t", data(tmp_path, batch_size=6), seed=3, rank=0, world_size=1)
    (batch,) = islice(made, 1)
    assert set(batch.keys) == {"good", "one"} and made.bad_samples == 4
    loader = build_eval_loader("t", data(tmp_path), rank=0, world_size=1)
    assert {key for own in loader for key in own.keys} == {"good", "one"} and loader.bad_samples == 4
    short = batch.to("cpu").images[batch.keys.index("one")]
    assert (short == short[:1]).all(), "its one frame, four times"


def test_options_that_do_not_go_with_clips_or_with_single_images_are_refused(clips):
    manifest = load_manifest(str(clips))

    def build(**options):
        return DATASETS.build(options.get("schema", "video_classification"), data(clips, **options), manifest)

    with pytest.raises(ConfigError, match="data.decode is 'cuda', which decodes single images"):
        build(decode="cuda", augment=AugmentConfig())
    with pytest.raises(ConfigError, match="does not use data.augment.mix_labels='patches'"):
        build(augment=AugmentConfig(cutmix=1.0, mix_labels="patches"))
    with pytest.raises(ConfigError, match="does not use data.caption_field='x'"):
        build(caption_field="x")
    with pytest.raises(ConfigError, match="reads single images, and data.frames is 4.*video_classification"):
        build(schema="classification")
    with pytest.raises(ConfigError, match="does not use data.stride=2"):
        build(schema="classification", frames=None, stride=2)


def test_a_sample_without_a_clip_or_a_class_says_what_it_lacks(clips):
    schema = DATASETS.build("video_classification", data(clips), load_manifest(str(clips)))
    with pytest.raises(SampleError, match="needs a clip .*mp4, .* or frames 000.jpg, 001.jpg"):
        schema.decode({"cls": b"1"})
    with pytest.raises(SampleError, match="needs cls"):
        schema.decode({"000.png": image()})
    assert schema.missing(["jpg", "cls"]).startswith("a clip") and not schema.missing(["7.jpg", "cls"])
    assert schema.reads == (*(f"{n:03d}.png" for n in range(6)), "cls")
