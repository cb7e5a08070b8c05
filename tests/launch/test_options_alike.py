"""An option is taken or refused alike by all commands, before anything heavy. None is ignored."""

import argparse
import io
import tarfile

import pytest
import torch

from launch.bench.entries import MERGED, UNMERGED, models_of
from launch.commands.values import colour, count, fractions, numbers, share
from launch.saved.run import read_run

PLAIN = ("timm:test_vit", "--no-pretrained", "--img-size", 64)


@pytest.fixture
def picture(tmp_path):
    from PIL import Image

    Image.new("RGB", (40, 40), (200, 30, 30)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.mark.parametrize(
    "option", [("--no-pretrained",), ("--img-size", 0), ("--weights", "w"), ("--adapter", "a")]
)
def test_what_is_said_of_a_published_model_is_refused_for_a_run(option, trained, picture, dtem):
    for command, *more in (("evaluate",), ("bench",), ("sweep",), ("board",), ("predict", picture)):
        said = dtem(command, trained, *more, *option, code=2)
        assert f"{option[0]} goes with a published model" in said


def test_what_is_said_of_a_run_is_refused_for_a_published_model(picture, dtem):
    data = ("--data", picture.parent)
    commands = (("evaluate", *data), ("bench",), ("sweep", *data), ("board", *data), ("predict", picture))
    for command, *more in commands:
        assert "go with a run" in dtem(command, *PLAIN, *more, "--checkpoint", "last", code=2)


def test_a_clip_is_led_to_the_command_that_scores_it(picture, dtem):
    for command, *more in (("bench",), ("sweep",), ("board",), ("predict", picture)):
        said = dtem(command, "open_clip:ViT-B-32@x", *more, code=2)
        assert "`dtem evaluate open_clip:ViT-B-32@x --zero-shot SHARDS` scores" in said


def test_a_reduction_that_removes_all_patches_is_refused(picture, dtem):
    for command, *more in (("bench",), ("predict", picture)):
        said = dtem(command, *PLAIN, *more, "--policy", "tome", "--reduction", 400, code=2)
        assert "reduction 400 removes 2400 tokens over 6 blocks, but the input has 16 patches" in said


def test_words_of_a_zero_shot_task_are_refused_without_one(trained, dtem):
    for option in (("--templates", "a {}"), ("--class-names", "nowhere.json")):
        assert "give it, with images" in dtem("evaluate", trained, *option, code=2)


def test_a_folder_in_place_of_a_file_is_refused_before_the_work(trained, dtem, tmp_path):
    for command, *more in (("evaluate",), ("bench", "--rounds", 1), ("report",)):
        said = dtem(command, trained, *more, "--out", tmp_path, code=2)
        assert "is a folder; give the name of a file" in said and "%" not in said
    (tmp_path / "file").touch()
    assert "its folder cannot be made" in dtem(
        "evaluate", trained, "--out", tmp_path / "file" / "scores.json", code=2
    )


def test_fewer_rounds_than_none_are_refused(trained, dtem, tmp_path):
    assert "rounds is -1" in dtem("sweep", trained, "--rounds", -1, "--out", tmp_path, code=2)


def test_nothing_is_drawn_of_samples_that_cannot_be_read(trained, dtem, tmp_path):
    with tarfile.open(tmp_path / "val-0.tar", "w") as shard:
        for suffix, content in (("jpg", b"no picture"), ("cls", b"3")):
            member = tarfile.TarInfo(f"0.{suffix}")
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))
    place = ("--set", f"tasks.digits.data.val={tmp_path}", "--out", tmp_path / "out")
    for more in ((), ("--animate",)):
        assert "none of the samples of val can be read" in dtem("visualise", trained, *place, *more, code=2)
    assert not (tmp_path / "out").exists()


def test_the_two_models_of_a_run_share_their_weights_on_the_device(trained):
    """Else the peak of the memory of each would hold those of the other."""
    models = models_of(read_run(trained), torch.device("meta"), None)
    merged = dict(models[MERGED].named_parameters())
    for name, own in models[UNMERGED].named_parameters():
        assert own.untyped_storage()._cdata == merged[name].untyped_storage()._cdata, name


@pytest.mark.parametrize("kind", [count, share, numbers, fractions, colour])
def test_a_value_that_is_no_number_is_said_in_words(kind):
    with pytest.raises(argparse.ArgumentTypeError, match="'x' is no (whole )?number"):
        kind("x")
    with pytest.raises(argparse.ArgumentTypeError):
        kind("-1")
