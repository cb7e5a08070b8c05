"""The commands on a run that reads clips."""

import json

import pytest
from shardkit import image
from tinyrun import tiny_clips_plain

from launch import cli
from pipeline.config.load import from_plain
from pipeline.train.loop import train


@pytest.fixture(scope="module")
def run(moving_digits, tmp_path_factory):
    output = tmp_path_factory.mktemp("clips") / "run"
    data = dict(eval_clips=2, stride=1)
    plain = tiny_clips_plain(moving_digits, output, data=data, train=dict(steps=4), log=dict(pictures=1))
    plain["backbone"] |= dict(frames=4)
    train(from_plain(plain))
    return output


def dtem(*words) -> int:
    return cli.main([*map(str, words)])


def test_a_run_on_clips_is_evaluated_with_its_predictions(run, tmp_path):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert 0 <= json.loads(lines[-1])["val/digits/top1"] <= 1
    assert dtem("evaluate", run, "--predictions", tmp_path / "said.jsonl") == 0
    said = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert len(said) == 12 and {"key", "label", "prediction", "label_name"} <= said[0].keys()


def test_a_run_on_clips_is_swept_and_timed(run, tmp_path):
    assert (
        dtem("sweep", run, *"--policy tome,vid_tldr --macs 0.7 --rounds 0 --out".split(), tmp_path / "s") == 0
    )
    (swept,) = json.loads((tmp_path / "s/sweep.json").read_text())
    assert {point["policy"] for point in swept["points"]} == {"none", "tome", "vid_tldr"}
    assert dtem("bench", run, *"--batch-sizes 2 --rounds 1".split()) == 0


def test_clips_are_drawn_as_strips_of_their_frames(run, tmp_path):
    assert [path.name for path in run.glob("pictures/*/*.png")] == ["digits_0.png"]
    assert dtem("visualise", run, "--num", 2, "--out", tmp_path / "page") == 0
    (page,) = (tmp_path / "page").glob("*.html")
    assert page.read_text().count("<img") >= 2
    assert dtem("report", run) == 0


def test_a_picture_is_refused_where_clips_are_read(run, tmp_path, capsys):
    (tmp_path / "x.png").write_bytes(image())
    assert dtem("predict", run, tmp_path / "x.png") == 2
    assert "reads clips, and these are pictures" in capsys.readouterr().err
