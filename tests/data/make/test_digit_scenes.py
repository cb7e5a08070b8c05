"""What the embedded set promises: determinism, no stroke in both splits, true labels, captions and masks."""

import re

import numpy as np
import pytest

from pipeline.data.make.digits.captions import NAMES
from pipeline.data.make.digits.scenes import MARGIN, _layout, digit_scenes_jobs, make_scene, strokes
from pipeline.data.make.write import write_shards
from pipeline.errors import ConfigError

SCENES = [make_scene(0, split, number, 64) for split in ("train", "val") for number in range(150)]


def test_train_and_val_share_no_stroke():
    for digit in range(10):
        train, val = ({(s.shape, s.tobytes()) for s in strokes(split)[digit]} for split in ("train", "val"))
        assert len(train) > 100 and len(val) > 30 and not train & val


def test_a_scene_is_a_function_of_its_address():
    again = make_scene(0, "train", 7, 64)
    assert np.array_equal(again.image, SCENES[7].image) and again.captions == SCENES[7].captions
    for other in (make_scene(1, "train", 7, 64), make_scene(0, "val", 7, 64), make_scene(0, "train", 8, 64)):
        assert not np.array_equal(other.image, again.image)


def test_shards_do_not_depend_on_workers(tmp_path):
    for workers in (1, 2):
        write_shards(
            digit_scenes_jobs(train=7, val=3, size=32, shard_size=3),
            tmp_path / str(workers),
            classes=NAMES,
            workers=workers,
        )
    files = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert len(files) == 9 and files == sorted(path.name for path in (tmp_path / "2").iterdir())
    assert all((tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes() for name in files)


@pytest.mark.parametrize("size", [32, 64, 96])
def test_the_largest_digit_is_clearly_the_largest(size):
    for number in range(200):
        rng = np.random.default_rng(number)
        first, *others = _layout(rng, "train", size)
        for _, ink, _, _ in others:
            assert ink.shape[0] < 0.85 * first[1].shape[0]
            assert ink.size < 0.85 * first[1].size
    assert MARGIN < 0.7


def test_all_digits_and_counts_come():
    assert {scene.digits[0].digit for scene in SCENES} == set(range(10))
    assert {len(scene.digits) for scene in SCENES} == {1, 2, 3}


def test_the_mask_marks_the_ink_of_the_digits():
    for scene in SCENES:
        assert scene.mask.dtype == np.uint8 and scene.mask.shape == scene.image.shape[:2] == (64, 64)
        assert set(np.unique(scene.mask)) == {0} | {1 + placed.digit for placed in scene.digits}
        grey = scene.image.mean(-1)
        assert abs(grey[scene.mask > 0].mean() - grey[scene.mask == 0].mean()) > 40, "ink stands out"


def test_captions_are_five_different_ones_that_name_the_digits():
    for scene in SCENES:
        assert len(scene.captions) == len(set(scene.captions)) == 5
        names = sorted(NAMES[placed.digit] for placed in scene.digits)
        for caption in scene.captions:
            words = re.findall(r"\b(?:an?|big|small|single) (" + "|".join(NAMES) + r")\b", caption)
            assert sorted(words) == names, caption


RELATION = re.compile(
    r"^an? (\w+) (above|over|below|under|to the left of|left of|to the right of|right of) an? (\w+)$"
)


def test_relations_are_true():
    told = 0
    for scene in SCENES:
        match = RELATION.match(scene.captions[0])
        if match is None:
            continue
        told += 1
        first, second = scene.digits
        assert (NAMES[first.digit], NAMES[second.digit]) == (match[1], match[3])
        holds = {
            "above": first.y < second.y,
            "over": first.y < second.y,
            "below": first.y > second.y,
            "under": first.y > second.y,
            "left of": first.x < second.x,
            "right of": first.x > second.x,
        }
        assert holds[match[2].removeprefix("to the ")]
    assert told > 50


def test_orders_are_true():
    told = 0
    for scene in SCENES:
        match = re.search(r"from (left to right|top to bottom): (.*)", scene.captions[3])
        if match is None:
            continue
        told += 1
        row = sorted(scene.digits, key=lambda placed: placed.x if match[1].startswith("left") else placed.y)
        assert re.findall("|".join(NAMES), match[2]) == [NAMES[placed.digit] for placed in row]
    assert told > 50


def test_a_canvas_on_which_digits_cannot_be_read_is_refused():
    with pytest.raises(ConfigError, match="32 or more"):
        digit_scenes_jobs(train=1, val=1, size=16, shard_size=1)
