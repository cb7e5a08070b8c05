"""Evaluation and sweeps by two processes, held against one: each sample is scored once, and rank 0 alone
measures speed, prints and writes."""

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import commands_worker
import pytest
import timm
import torch
from damage import damaged
from deepspeed_launch import ended, environment
from forks import Fork
from safetensors.torch import save_file
from shardkit import samples, write_tar

from pipeline.train import storage

POINTS = ("--policy", "tome,dtem", "--reduction", "2")
BOARD = ("--seeds", "0,1", "--reduction", "2")
BATCH = 64
"""Pictures of a batch where agreement is measured."""


@pytest.fixture(scope="module")
def commands(three_tasks, digits, tmp_path_factory) -> dict[str, list[str]]:
    """Name -> command line, without where it writes."""
    folder, run = tmp_path_factory.mktemp("inputs"), str(three_tasks("shared"))
    torch.manual_seed(0)
    weights = str(folder / "tiny.safetensors")
    save_file(timm.create_model("test_vit", img_size=32, num_classes=5).state_dict(), weights)
    pictures = [(name, data) for name, data in samples("v", BATCH + 6) if name.endswith("png")]
    (folder / "pictures").mkdir()
    write_tar(folder / "pictures" / "x.tar", pictures)
    named = ["timm:test_vit", "--weights", weights, "--img-size", "32"]
    agreement = ["sweep", *named, "--data", str(folder / "pictures"), "--macs", "0.7", "--rounds", "1"]
    # the second batch, which is the second rank's
    bad = damaged(digits, folder / "bad", {("val-00000.tar", sample): "jpg" for sample in range(5, 10)})
    places = [f"tasks.digits.data.val={bad}", "tasks.digits.data.max_bad_samples=2"]
    return {
        "evaluate": ["evaluate", run],
        "sweep": ["sweep", run, "--task", "masks", *POINTS, "--rounds", "1"],
        "agreement": [*agreement, "--policy", "tome"],
        "board": ["board", run, "--policies", "random,tome", *BOARD, "--rounds", "1"],
        "lost": ["evaluate", run, "--task", "digits", "--cfg-options", *places],
    }


def placed(commands: dict[str, list[str]], folder: Path) -> list[list[str]]:
    """The command lines, which write into a folder."""
    written = {"evaluate": ["--predictions", folder / "predictions", "--out", folder / "scores.json"]}
    written |= {name: ["--out", folder / name] for name in ("sweep", "agreement", "board")}
    return [[*argv, *map(str, written.get(name, []))] for name, argv in commands.items()]


@pytest.fixture(scope="module")
def one(commands, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    assert [commands_worker.cli.main(argv) for argv in placed(commands, folder)[:-1]] == [0, 0, 0, 0]
    return folder


@pytest.fixture(scope="module")
def two(commands, tmp_path_factory) -> tuple[Path, list[str]]:
    """Folder of what two processes wrote, and what each printed."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "plan.json").write_text(json.dumps(placed(commands, folder)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": "0"}
    words = commands_worker.__file__, folder / "plan.json"
    ranks = [Fork(*words, env=environment() | world | {"RANK": rank}) for rank in "01"]
    codes, _ = ended(ranks)
    said = [rank.out + rank.err for rank in ranks]
    assert codes == [0, 0], said
    return folder, said


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_two_processes_count_what_one_counts(one, two):
    """Classes, captions and masks: hits and pixels to the last one, sums but for the order in which they are
    added."""
    alone, both = (read(folder / "scores.json") for folder in (one, two[0]))
    assert both["confusion"] == alone["confusion"] and both["missing"] == {}
    assert both["scores"].keys() == {"digits", "captions", "masks"}
    for task, scores in alone["scores"].items():
        counts = {name: value for name, value in scores.items() if "Acc" in name or "IoU" in name}
        counts |= {name: scores[name] for name in ("samples", "top1", "top5") if name in scores}
        assert {name: both["scores"][task][name] for name in counts} == counts
        close = {name: value for name, value in scores.items() if value is not None}
        assert {name: both["scores"][task][name] for name in close} == pytest.approx(close, rel=1e-6)


def test_two_processes_write_each_sample_once(one, two):
    def files(folder: Path) -> dict[str, bytes]:
        found = sorted((folder / "predictions").rglob("*.*"))
        return {path.name: path.read_bytes() for path in found if path.suffix != ".jsonl"}

    lines = [
        [json.loads(line) for line in (folder / "predictions/digits.jsonl").read_text().splitlines()]
        for folder in (one, two[0])
    ]
    assert lines[0] == lines[1] and len({line["key"] for line in lines[0]}) == 25
    assert files(one) == files(two[0]) and len(files(one)) == 25 + 1
    assert not list(two[0].glob(".partial*"))


def swept(folder: Path, name: str) -> Any:
    found = read(folder / name / ("board.json" if name == "board" else "sweep.json"))
    return found["tasks"] if name == "board" else found


@pytest.mark.parametrize("name", ["sweep", "agreement", "board"])
def test_a_sweep_scores_on_all_ranks_and_is_timed_on_the_first(one, two, name):
    """A board too, whose divergences take no part of a loss, which may be a collective."""
    for alone, both in zip(*(swept(folder, name) for folder in (one, two[0])), strict=True):
        assert both["conditions"] == alone["conditions"] and both["task"] == alone["task"]
        for own, wanted in zip(both["points"], alone["points"], strict=True):
            assert own["policy"] == wanted["policy"] and own["gmacs"] == wanted["gmacs"]
            assert len(own["images_per_s"]) == len(own["encoder_images_per_s"]) == 1
            for metric, values in wanted["scores"].items():
                known = [value or 0.0 for value in values]
                found = [value or 0.0 for value in own["scores"][metric]]
                assert found == pytest.approx(known, rel=1e-5, abs=1e-7)
    if name == "agreement":
        assert both["conditions"]["samples"] == BATCH + 6


def test_rank_0_alone_prints(two):
    first, second = two[1]
    assert first.count("wrote ") >= 4 and "| dtem" in first
    assert "wrote" not in second and "|" not in second and "top1" not in second


def test_data_that_one_rank_cannot_read_end_both(two):
    folder, (first, second) = two
    assert [read(folder / f"codes-{rank}.json") for rank in range(2)] == [
        [0, 0, 0, 0, 4],
        [0, 0, 0, 0, 2],
    ]
    assert "dtem evaluate: rank 1 could not read its data, and says why" in first
    assert "dtem evaluate, rank 1: " in second and "in a row" in second


def test_a_sweep_reads_the_weights_once_and_no_state_of_the_optimizer(trained, dtem, tmp_path, monkeypatch):
    """Nor does an evaluation, which reads runs by the same function. Without the file any reader fails."""
    run = shutil.copytree(trained, tmp_path / "run")
    (state,) = run.glob("checkpoints/step_*/optimizer.safetensors")
    state.unlink()
    opened, load = [], storage.load_file

    def noted(path: Path) -> Any:
        opened.append(path.name)
        return load(path)

    monkeypatch.setattr(storage, "load_file", noted)
    policies = ("--policy", "random,tome,dtem", "--reduction", "1,2", "--rounds", "0")
    dtem("sweep", run, *policies, "--out", tmp_path / "sweep")
    assert len(read(tmp_path / "sweep" / "sweep.json")[0]["points"]) == 7
    assert sorted(opened) == ["ema.safetensors", "model.safetensors"]
