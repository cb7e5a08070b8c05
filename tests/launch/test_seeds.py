"""`--seeds`: a run for each seed, one after another. Real processes."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from deepspeed_launch import ROOT, environment
from tinyrun import tiny_plain

from pipeline.run_folder import complete_folders


@pytest.fixture
def config(digits, tmp_path) -> Path:
    (tmp_path / "tiny.json").write_text(
        json.dumps(tiny_plain(digits, tmp_path / "runs", train=dict(steps=3)))
    )
    return tmp_path / "tiny.json"


def start(*words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "launch.cli", *map(str, words)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment(), text=True, stdout=-1, stderr=subprocess.STDOUT
    )


def seed_of(run: Path) -> int:
    return json.loads((run / "config.json").read_text())["seed"]


def test_each_seed_has_a_folder_and_those_that_are_done_are_passed_over(config, tmp_path):
    runs = tmp_path / "runs"
    for seeds in ("3", "3,5"):
        said, _ = start("train", config, "--seeds", seeds).communicate()
        assert f"seed 3: {runs}/seed_3" in said
    assert [seed_of(runs / f"seed_{seed}") for seed in (3, 5)] == [3, 5]
    started = [(runs / f"seed_{seed}/starts.jsonl").read_text().count("\n") for seed in (3, 5)]
    assert started == [2, 1]


def test_a_request_to_stop_reaches_the_run_and_ends_the_row(config, tmp_path):
    process = start(
        "train", config, "--seeds", "3,5", "--set", "train.steps=100000", "--set", "train.log_every=1"
    )
    assert process.stdout is not None
    assert any("lr/head" in line for line in process.stdout)
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate()
    assert process.returncode == 0 and "the same command goes on" in rest
    assert complete_folders(tmp_path / "runs/seed_3/checkpoints") and not (tmp_path / "runs/seed_5").exists()


@pytest.mark.slow
def test_what_fails_ends_the_row_with_its_code(config, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/seed_3").write_text("a file where a folder belongs")
    process = start("train", config, "--seeds", "3,5")
    process.communicate()
    assert process.returncode == 2 and not (tmp_path / "runs/seed_5").exists()


def test_a_seed_that_is_named_twice_is_refused(config, dtem):
    assert "names a seed twice" in dtem("train", config, "--seeds", "3,3", code=2)


@pytest.mark.slow
def test_a_cluster_gets_one_job_for_each(config):
    words = ("--seeds", "3,5", "--backend", "slurm", "--nodes", 2, "--nproc", 4, "--dry-run")
    said, _ = start("launch", config, *words).communicate()
    assert said.count("#SBATCH --nodes=2") == 2 and "seed=5" in said
