"""Runs on clips, of two tasks, in two processes at stages of ZeRO and under FSDP2, held against one local
process."""

import json
from pathlib import Path

import pytest
import torch
from deepspeed_launch import assert_same_state, launch_runs
from tinyrun import CONTINUOUS, two_clip_tasks_plain

from pipeline.config.load import from_plain
from pipeline.train.loop import train
from pipeline.train.storage import read_checkpoint

SOFT = CONTINUOUS | dict(options=CONTINUOUS["options"] | dict(candidates=16))
"""Each of the 16 sources gives to all 16 destinations."""
RUNS = dict(soft=(SOFT, "joint"), lengths=(dict(policy="rlt", reduction=[8, 4, 0]), "backbone"))
"""In neither does rounding choose: run lengths are of pixels."""
ENGINES = dict(
    zero_1=dict(type="deepspeed", zero_stage=1),
    zero_3=dict(type="deepspeed", zero_stage=3),
    fsdp=dict(type="fsdp"),
)
STEPS = 4


def plain(folder: Path, output: Path, name: str, batch_size: int, **engine) -> dict:
    merging, mode = RUNS[name]
    steps = dict(mode=mode, steps=STEPS, log_every=1, save_every=2, keep_checkpoints=5)
    engine = dict(type="local", precision="fp32") | engine
    balancing = dict(every=0)  # where weights are divided nobody sees gradients of single tasks
    return two_clip_tasks_plain(
        folder,
        output,
        batch_size=batch_size,
        merging=merging,
        train=steps,
        engine=engine,
        balancing=balancing,
    )


def lines(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def figures(output: Path, name: str) -> torch.Tensor:
    return torch.tensor([line[name] for line in lines(output) if name in line])


@pytest.fixture(scope="module")
def runs(moving_digits, tmp_path_factory) -> Path:
    """Every run, in one launch; beside them those of this process, and one that continues at ZeRO 3 what it
    saved half-way."""
    folder = tmp_path_factory.mktemp("runs")
    for name in RUNS:
        train(from_plain(plain(moving_digits, folder / name, name, 8)))
    plan = [
        (plain(moving_digits, folder / f"{name}.{engine}", name, 4, **options), "none")
        for name in RUNS
        for engine, options in ENGINES.items()
    ]
    half = str(folder / "lengths/checkpoints/step_00000002")
    plan.append((plain(moving_digits, folder / "continued", "lengths", 4, **ENGINES["zero_3"]), half))
    launch_runs(plan, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", RUNS)
def test_clips_in_two_processes_are_learned_and_counted_as_in_one(runs, name, engine):
    one, two = runs / name, runs / f"{name}.{engine}"
    for task in ("digits", "parts"):
        losses = [figures(own, f"{task}/loss") for own in (one, two)]
        assert len(losses[0]) == STEPS
        torch.testing.assert_close(losses[1], losses[0], atol=1e-4, rtol=1e-4)
        ends = [lines(own)[-1] for own in (one, two)]
        assert ends[0][f"val/{task}/samples"] == ends[1][f"val/{task}/samples"] == 12
        assert ends[1][f"val/{task}/loss"] == pytest.approx(ends[0][f"val/{task}/loss"], rel=1e-4)
    states = [read_checkpoint(own / "checkpoints/step_00000004").tensors for own in (two, one)]
    assert_same_state(*states)


@pytest.mark.slow
def test_a_local_run_on_clips_continues_in_two_processes_at_zero_3(runs):
    torch.testing.assert_close(
        figures(runs / "continued", "digits/loss"),
        figures(runs / "lengths", "digits/loss")[2:],
        atol=1e-4,
        rtol=1e-4,
    )
    states = [
        read_checkpoint(runs / own / "checkpoints/step_00000004").tensors for own in ("continued", "lengths")
    ]
    assert_same_state(*states)
