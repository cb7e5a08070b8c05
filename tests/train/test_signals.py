"""A request to stop is heard whatever the run is at, and what it leaves behind is continued exactly. Real
signals."""

import multiprocessing
import os
import signal
import threading
from pathlib import Path

import psutil
import pytest
import torch
from deepspeed_launch import environment
from forks import Fork

from pipeline.model import MultiTaskModel
from pipeline.run_folder import complete_folders
from pipeline.train import loop, saves
from pipeline.train.loop import train
from pipeline.train.storage import read_checkpoint

ASKS = (signal.SIGTERM, signal.SIGUSR1)
GENEROUS = 300
STARTS = """
import sys, time
from pipeline.train.signals import StopRequest
with StopRequest():
    print("ready", flush=True)
    time.sleep(600)
"""
CONNECTS = """
from pipeline.engine.connect import connect
from pipeline.train.signals import StopRequest
with StopRequest():
    print("ready", flush=True)
    connect(600)
"""


def saved(output: Path) -> list[int]:
    return [int(folder.name.removeprefix("step_")) for folder in complete_folders(output / "checkpoints")]


def assert_same(one: Path, other: Path, step: int) -> None:
    a, b = (read_checkpoint(folder / f"checkpoints/step_{step:08d}") for folder in (one, other))
    assert a.tensors.keys() == b.tensors.keys()
    assert all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)
    assert a.facts["progress"] == b.facts["progress"] and a.facts["streams"] == b.facts["streams"]


@pytest.mark.parametrize("script", [STARTS, CONNECTS], ids=["starts", "connects"])
def test_before_the_first_step_a_signal_ends_the_process_at_once(script):
    """Also while it waits for others that never come, outside of Python."""
    place = dict(RANK="0", WORLD_SIZE="2", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    process = Fork("-c", script, env=environment() | place)
    process.until("ready\n")
    process.send_signal(signal.SIGTERM)
    assert process.wait(GENEROUS) == 0 and "stopped as asked before the first step" in process.err


@pytest.mark.parametrize("number", ASKS)
def test_in_an_evaluation_a_run_stops_at_the_next_batch_and_makes_it_up(
    tiny_run, tmp_path, monkeypatch, number
):
    """Eval batches of 5 of 25 samples; the signal comes in the second one of step 2, and again in a save."""
    settings = dict(steps=4, eval_every=2, log_every=1, keep_checkpoints=9)
    clean, other = tmp_path / "clean", tmp_path / "other"
    train(tiny_run(clean, train=settings))
    evaluate, save, batches = MultiTaskModel.evaluate, saves.save, []

    def asked(self, batch, **options):
        batches.append(batch)
        if len(batches) == 2:
            signal.raise_signal(number)
        return evaluate(self, batch, **options)

    def asked_again(*rest, **options):
        signal.raise_signal(number)
        return save(*rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(MultiTaskModel, "evaluate", asked)
        patch.setattr(saves, "save", asked_again)
        train(tiny_run(other, train=settings))
    assert len(batches) == 2 and saved(other) == [2]
    train(tiny_run(other, train=settings))
    assert_same(clean, other, 4)
    values = [(folder / "metrics.jsonl").read_text().count("val/digits/top1") for folder in (clean, other)]
    assert values == [2, 2]


def test_while_data_are_waited_for_a_run_stops_and_leaves_no_worker(tiny_run, tmp_path, monkeypatch):
    """Its only worker is stopped when step 1 is done; the signal comes a moment later."""
    step, before = loop.train_step, set(multiprocessing.active_children())
    workers: list[psutil.Process] = []

    def stall(run, *rest):
        if run.progress.step == 1:
            (worker,) = set(multiprocessing.active_children()) - before
            workers.append(psutil.Process(worker.pid))
            workers[-1].suspend()
            threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
        return step(run, *rest)

    monkeypatch.setattr(loop, "train_step", stall)
    train(tiny_run(data=dict(workers=1), train=dict(steps=1000)))
    assert len(workers) == 1 and not workers[0].is_running()
    assert len(saved(tmp_path / "run")) == 1 and saved(tmp_path / "run")[0] < 1000
