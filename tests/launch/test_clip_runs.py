"""The commands on a run that reads clips."""

import json
from dataclasses import replace

import pytest
import torch
from shardkit import image
from tinyrun import tiny_clips_plain, two_clip_tasks_plain

from launch import cli
from launch.exported.formats import Program
from launch.saved.run import build, read_run
from pipeline import load_weights
from pipeline.backbone.weights.files import read_state_dict
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
    """Also by schedules that are solved, on one clip of each video."""
    points = "--policy tome,vid_tldr --macs 0.7 --rounds 0 --schedule even,solved --solve-images 8 --out"
    assert dtem("sweep", run, *points.split(), tmp_path / "s") == 0
    (swept,) = json.loads((tmp_path / "s/sweep.json").read_text())
    assert {point["policy"] for point in swept["points"]} == {"none", "tome", "vid_tldr"}
    assert {point["kind"] for point in swept["points"][1:]} == {"even", "solved"}
    assert dtem("bench", run, *"--batch-sizes 2 --rounds 1".split()) == 0


def test_a_board_of_clips_names_the_policies_that_cannot_serve(run, tmp_path):
    points = "--policies tome,rlt,evit,stvit --reduction [8,0,0] --rounds 0 --seeds 0 --out"
    assert dtem("board", run, *points.split(), tmp_path / "b") == 0
    (board,) = json.loads((tmp_path / "b/board.json").read_text())["tasks"]
    assert [point["policy"] for point in board["points"]] == ["none", "tome", "rlt"]
    assert all(value >= -1e-7 for point in board["points"] for value in point["scores"]["divergence"])
    page = (tmp_path / "b/board.md").read_text()
    assert "it needs a class token" in page and "patches lie in a plane, not clips" in page


@torch.no_grad()
def test_an_export_of_clips_is_read_again_and_says_which_frames_it_reads(run, tmp_path, capsys):
    assert dtem("export", run, "--out", tmp_path / "e") == 0
    card = json.loads((tmp_path / "e/model.json").read_text())
    assert (card["architecture"]["frames"], card["architecture"]["tubelet"]) == (4, 2)
    assert (
        card["input"]["frames"] == 4
        and card["input"]["which"] == "one of every 1, from the middle of the video"
    )
    saved = read_run(run)
    given, read = (
        build(saved),
        build(replace(saved, tensors={k: v.clone() for k, v in saved.tensors.items()})),
    )
    for parameter in read.parameters():
        parameter.zero_()
    assert not load_weights(read, read_state_dict(tmp_path / "e/model.safetensors")).missing
    clips = torch.randn(2, 4, 3, 32, 32)
    assert torch.equal(Program(read, "digits")(clips), Program(given, "digits")(clips))
    for model, way in ((run, "a folder that `dtem export` wrote"), (tmp_path / "e", "give the run itself")):
        assert dtem("teach", model, "--data", tmp_path) == 2
        assert way in capsys.readouterr().err


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("policy", ["dtem", "gtp", "rlt", "vid_tldr"])
def test_programs_of_clips_give_the_runs_logits(run, tmp_path, policy, capsys):
    """For any number of clips, run by torch, and by onnxruntime where torch exports to ONNX."""
    runtime = pytest.importorskip("onnxruntime")
    words = ("--policy", policy, "--reduction", "[8,0,0]", "--out")
    given = build(read_run(run), policy)
    given.backbone.set_reduction([8, 0, 0])
    assert dtem("export", run, "--format", "pt2", *words, tmp_path / "pt2") == 0
    program, session = torch.export.load(tmp_path / "pt2/model.pt2").module(), None
    if dtem("export", run, "--format", "onnx", *words, tmp_path / "onnx") == 0:
        session = runtime.InferenceSession(tmp_path / "onnx/model.onnx")
    else:
        assert policy in ("rlt", "vid_tldr") and "give --format pt2" in capsys.readouterr().err
    for count in (1, 3):
        clips = torch.randn(count, 4, 3, 32, 32)
        expected = Program(given, "digits")(clips)
        torch.testing.assert_close(program(clips), expected, atol=1e-5, rtol=1e-5)
        if session is not None:
            (logits,) = session.run(None, {"images": clips.numpy()})
            torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_two_tasks_of_clips_in_one_run_have_every_command(moving_digits, tmp_path):
    """One of several stretches, one of parts."""
    output = tmp_path / "run"
    train(from_plain(two_clip_tasks_plain(moving_digits, output, batch_size=4, train=dict(steps=4))))
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert {lines[-1][f"val/{task}/samples"] for task in ("digits", "parts")} == {12}
    out = tmp_path / "out"
    for words in (
        ("evaluate", output, "--out", tmp_path / "scores.json"),
        ("sweep", output, "--policy", "rlt", "--reduction", "[8,0,0]", "--rounds", 0, "--out", out),
        ("board", output, "--policies", "tome", "--merged", 0.3, "--rounds", 0, "--out", out),
        ("bench", output, "--task", "parts", "--batch-sizes", 1, "--rounds", 1),
        ("visualise", output, "--num", 1, "--out", out),
        ("export", output, "--task", "parts", "--out", out),
        ("report", output),
    ):
        assert dtem(*words) == 0, words
    assert set(json.loads((tmp_path / "scores.json").read_text())["scores"]) == {"digits", "parts"}


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
