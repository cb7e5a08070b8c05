"""Which frames a clip has."""

import random

import numpy as np
import pytest
from shardkit import config

from pipeline.data.members.clips import Pictures
from pipeline.data.samples.frame_choice import FrameChoice, taken
from pipeline.errors import ConfigError, SampleError

LENGTHS = (1, 2, 3, 7, 8, 16, 61, 300)
CHOICES = [FrameChoice(*how) for how in ((1,), (8,), (16, 4), (4, 1, 3), (3, None, 4), (5, 7, 2))]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_a_clip_has_its_frames_in_order_and_of_this_video(choice, length):
    random.seed(0)
    fixed = choice.fixed(length)
    assert len(fixed) == choice.clips
    for numbers in (*fixed, *(choice.drawn(length) for _ in range(20))):
        assert len(numbers) == choice.frames and numbers == sorted(numbers)
        assert 0 <= numbers[0] and numbers[-1] < length


def test_what_is_drawn_depends_on_the_generator_alone():
    for choice in CHOICES:
        random.seed(7)
        one = [choice.drawn(100) for _ in range(5)]
        random.seed(7)
        assert one == [choice.drawn(100) for _ in range(5)] and one[1:] != one[:-1]


def test_a_stretch_begins_anywhere_and_has_every_nth_frame():
    choice = FrameChoice(4, 3)
    random.seed(0)
    drawn = [choice.drawn(12) for _ in range(200)]
    assert all(np.diff(numbers).tolist() == [3, 3, 3] for numbers in drawn)
    assert {numbers[0] for numbers in drawn} == {0, 1, 2}, "the last frame is one of them: 2 + 9 is 11"


def test_a_stretch_behind_the_end_repeats_the_last_frame():
    assert FrameChoice(5, 2).fixed(6) == [[0, 2, 4, 5, 5]] == [FrameChoice(5, 2).drawn(6)]


def test_parts_share_the_video_and_each_gives_one_frame():
    choice = FrameChoice(4)
    random.seed(0)
    drawn = np.array([choice.drawn(10) for _ in range(400)])
    assert [sorted(set(part)) for part in drawn.T] == [[0, 1], [2, 3, 4], [5, 6], [7, 8, 9]]
    assert FrameChoice(6).fixed(3) == [[0, 0, 1, 1, 2, 2]], "a short video has each frame as often"
    assert FrameChoice(3).fixed(3) == [[0, 1, 2]] == [FrameChoice(3).drawn(3)]


def test_an_evaluation_looks_at_the_middle_and_several_clips_at_all_of_it():
    assert FrameChoice(16, 4).fixed(300) == [list(range(119, 180, 4))]
    starts = [numbers[0] for numbers in FrameChoice(16, 4, 5).fixed(301)]
    assert starts == [0, 60, 120, 180, 240] and FrameChoice(16, 4, 5).fixed(301)[-1][-1] == 300
    assert FrameChoice(3).fixed(15) == [[2, 7, 12]], "the middle of each part"
    assert FrameChoice(3, None, 2).fixed(12) == [[1, 5, 9], [3, 7, 11]]


def test_a_frame_that_comes_several_times_is_decoded_once_and_all_have_one_size():
    read = []
    clip = Pictures(
        tuple(bytes([n]) for n in range(5)), lambda data: read.append(data[0]) or np.zeros((3, 2, 2))
    )
    assert len(list(taken(clip, [0, 0, 3, 4, 4, 4]))) == 6 and read == [0, 3, 4]
    sizes = Pictures((b"1", b"2"), lambda data: np.zeros((3, int(data), 2)))
    with pytest.raises(SampleError, match="frame 1 has 2x2 pixels and frame 0 2x1"):
        list(taken(sizes, [0, 1]))


@pytest.mark.parametrize("option", [dict(frames=0), dict(frames=2000), dict(stride=0), dict(eval_clips=65)])
def test_numbers_that_make_no_clip_are_refused(option):
    ((name, value),) = option.items()
    with pytest.raises(ConfigError, match=f"data.{name} is {value}; give 1 to"):
        config("unused", **option)
