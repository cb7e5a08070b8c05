"""`--seeds`: a run for each seed, one after another. Real processes."""

import json
import signal
from pathlib import Path

import pytest
from deepspeed_launch import environment
from forks import Fork
from tinyrun import tiny_plain

from pipeline.config.load import from_plain
from pipeline.run_folder import complete_folders
from pipeline.train.loop import train


@pytest.fixture
def config(digits, tmp_path) -> Path:
    (tmp_path / "tiny.json").write_text(
        json.dumps(tiny_plain(digits, tmp_path / "runs", train=dict(steps=1), optim=dict(warmup_steps=0)))
    )
    return tmp_path / "tiny.json"


def start(*words: object) -> Fork:
    return Fork("-m", "launch.cli", *map(str, words), env=environment())


def seed_of(run: Path) -> int:
    return json.loads((run / "config.json").read_text())["seed"]


def test_each_seed_has_a_folder_and_those_that_are_done_are_passed_over(config, tmp_path):
    runs = tmp_path / "runs"
    plain = json.loads(config.read_text()) | dict(seed=3, output=str(runs / "seed_3"))
    train(from_plain(plain))
    process = start("train", config, "--seeds", "3,5")
    assert process.wait() == 0 and all(f"seed {seed}: {runs}/seed_{seed}" in process.out for seed in (3, 5))
    assert [seed_of(runs / f"seed_{seed}") for seed in (3, 5)] == [3, 5]
    started = [(runs / f"seed_{seed}/starts.jsonl").read_text().count("\n") for seed in (3, 5)]
    assert started == [2, 1]


def test_a_request_to_stop_reaches_the_run_and_ends_the_row(config, tmp_path):
    process = start(
        "train", config, "--seeds", "3,5", "--set", "train.steps=100000", "--set", "train.log_every=1"
    )
    process.until("lr/head")
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0 and "the same command goes on" in process.out
    assert complete_folders(tmp_path / "runs/seed_3/checkpoints") and not (tmp_path / "runs/seed_5").exists()


@pytest.mark.slow
def test_what_fails_ends_the_row_with_its_code(config, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/seed_3").write_text("a file where a folder belongs")
    assert start("train", config, "--seeds", "3,5").wait() == 2 and not (tmp_path / "runs/seed_5").exists()


def test_a_seed_that_is_named_twice_is_refused(config, dtem):
    assert "names a seed twice" in dtem("train", config, "--seeds", "3,3", code=2)


@pytest.mark.slow
def test_a_cluster_gets_one_job_for_each(config):
    words = ("--seeds", "3,5", "--backend", "slurm", "--nodes", 2, "--nproc", 4, "--dry-run")
    process = start("launch", config, *words)
    assert process.wait() == 0
    said = process.out
    assert said.count("#SBATCH --nodes=2") == 2 and "seed=5" in said
