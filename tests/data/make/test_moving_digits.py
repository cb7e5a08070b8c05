"""What the embedded set of clips promises: determinism, no stroke in both splits, motions that are true, and
that a frame by itself says nothing."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from shardkit import dtem

from pipeline.config.schema import AugmentConfig, DataConfig
from pipeline.data.make.digits.moving import CIRCLES, MOTIONS, make_clip, moving_digits_jobs
from pipeline.data.make.write import write_shards
from pipeline.data.stream import build_eval_loader
from pipeline.errors import ConfigError

SMALL = dict(train=7, val=5, size=16, frames=5, form="png", shard_size=3)
CLIPS = [make_clip(0, "train", number, 32, 8) for number in range(400)]


def test_a_clip_is_a_function_of_its_address():
    again = make_clip(0, "train", 7, 32, 8)
    assert np.array_equal(again.frames, CLIPS[7].frames) and again.motion == CLIPS[7].motion
    others = ((1, "train", 7, 32, 8), (0, "val", 7, 32, 8), (0, "train", 8, 32, 8), (0, "train", 7, 32, 9))
    for address in others:
        assert not np.array_equal(make_clip(*address).frames[:8], again.frames)


def test_each_motion_moves_one_thing_one_way():
    moved = {"across": ("right", "left"), "down": ("down", "up")}
    moved |= {"turn": ("clockwise", "anticlockwise"), "size": ("grows", "shrinks")}
    assert {clip.motion for clip in CLIPS} == set(range(len(MOTIONS)))
    for clip in CLIPS:
        steps = (np.diff(clip.places, axis=0) + 0.5) % 1 - 0.5
        for step, circle in zip(steps.T, CIRCLES, strict=True):
            there, back = moved[circle]
            wanted = {there: 1, back: -1}.get(MOTIONS[clip.motion], 0)
            assert (np.sign(step.round(6)) == wanted).all() and np.abs(step).max() < 0.2
            assert np.allclose(step, step[0])


def test_a_frame_by_itself_says_nothing():
    """In the first frame and in the last a digit is anywhere, turned and sized anyhow, whatever its class:
    the mean of numbers on a circle is near its middle, by four standard errors."""
    number = 540
    clips = [make_clip(0, "val", n, 16, 3) for n in range(number)]
    for motion in range(len(MOTIONS)):
        places = np.stack([clip.places for clip in clips if clip.motion == motion])
        assert len(places) > number / len(MOTIONS) / 2
        for frame in (0, 2):
            mean = np.exp(2j * np.pi * places[:, frame]).mean(0)
            assert (np.abs(mean) < 4 / np.sqrt(len(places))).all()


def test_the_ground_is_still_and_the_ink_moves_over_it():
    for clip in CLIPS[:60]:
        different = [(one != other).any() for one, other in pairwise(clip.frames)]
        assert any(different) == (MOTIONS[clip.motion] != "still")
        ground = np.median(clip.frames, axis=0)
        assert ((clip.frames == ground).mean((1, 2, 3)) > 0.2).all()


def test_a_digit_that_leaves_comes_in_on_the_other_side():
    """So an upright one moves as a picture that is rolled, up to the ground that stays."""
    ways = {"right": (1, 1), "left": (1, -1), "down": (0, 1), "up": (0, -1)}
    for clip in CLIPS:
        if MOTIONS[clip.motion] not in ways:
            continue
        axis, direction = ways[MOTIONS[clip.motion]]
        dark = (clip.frames[..., 0] < 100).astype(int)
        first, later = dark[0], dark[3]
        fits = [(np.roll(first, direction * way, axis) == later).mean() for way in range(32)]
        assert 4 <= int(np.argmax(fits)) <= 13, "three steps of 0.06 to 0.11 of 32 pixels, each rounded"


def test_shards_do_not_depend_on_workers(tmp_path):
    for workers in (1, 2):
        write_shards(moving_digits_jobs(**SMALL), tmp_path / str(workers), classes=MOTIONS, workers=workers)
    files = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert len(files) == 11 and files == sorted(path.name for path in (tmp_path / "2").iterdir())
    assert all((tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes() for name in files)


def test_what_is_made_is_what_is_drawn_and_verifies(tmp_path, capsys):
    small = "--train 4 --val 3 --size 16 --frames 5 --workers 1".split()
    assert dtem("make", "moving_digits", tmp_path / "set", *small) == 0
    assert "members 000.png to 004.png, cls" in capsys.readouterr().out
    assert dtem("verify", tmp_path / "set", "--workers", 1) == 0
    plain = AugmentConfig(crop_pct=1.0)
    data = DataConfig(
        schema="video_classification",
        val=str(tmp_path / "set"),
        img_size=16,
        frames=5,
        workers=0,
        augment=plain,
    )
    (batch,) = build_eval_loader("t", data, rank=0, world_size=1)
    drawn = [make_clip(0, "val", number, 16, 5) for number in range(3)]
    assert batch.targets.labels.tolist() == [clip.motion for clip in drawn]
    expected = torch.from_numpy(np.stack([clip.frames for clip in drawn])).permute(0, 1, 4, 2, 3)
    assert torch.equal(batch.images, expected)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (dict(size=14), "14 pixels: give an even number, 16 or more"),
        (dict(size=33), "33 pixels: give an even number"),
        (dict(frames=1), "1 frames: give 2 to 200"),
        (dict(frames=201), "201 frames: give 2 to 200"),
    ],
)
def test_clips_in_which_nothing_is_seen_are_refused(options, told):
    with pytest.raises(ConfigError, match=told):
        moving_digits_jobs(**SMALL | options)
