"""However a run ends, its process ends too, with all that it started. Real processes, with data workers."""

import json
import os
import shutil
import signal
import time
from contextlib import nullcontext
from pathlib import Path

import psutil
import pytest
import torch
from forks import Fork

import tasks  # noqa: F401 - fills the registry of the process that is started
from pipeline.data.batches import BatchReader
from pipeline.model import MultiTaskModel
from pipeline.run_folder import complete_folders
from pipeline.train import loop, signals
from pipeline.train.loop import train

GENEROUS = 90.0
"""Seconds. A process that has not ended then never will."""


class Injected(Exception):
    """The error that a test puts into a run."""


def failing(output, process=os.getpid):
    """Raises where it is called, in the process that it is called with, having noted that process'
    workers."""

    def fail(*_: object, **__: object):
        note_workers(output, process())
        raise Injected

    return fail


def in_forward(monkeypatch, output):
    monkeypatch.setattr(MultiTaskModel, "forward", failing(output))


def in_evaluation(monkeypatch, output):
    monkeypatch.setattr(MultiTaskModel, "evaluate", failing(output))


def in_a_worker(monkeypatch, output):
    monkeypatch.setattr(BatchReader, "_collate", failing(output, os.getppid))


def while_the_output_is_deleted(monkeypatch, output):
    """All at once, as a checkpoint may be written into it meanwhile."""
    gone = output.with_name("gone")
    after_two_steps(monkeypatch, lambda: (output.rename(gone), shutil.rmtree(gone, ignore_errors=True)))


def a_killed_worker(monkeypatch, output):
    after_two_steps(monkeypatch, lambda: os.kill(psutil.Process().children()[0].pid, signal.SIGKILL))


def a_kill(monkeypatch, output):
    after_two_steps(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGKILL))


def an_interrupt_in_a_step(monkeypatch, output):
    def interrupt():
        raise KeyboardInterrupt

    after_two_steps(monkeypatch, interrupt)


def after_two_steps(monkeypatch, action):
    step = loop.train_step

    def then(run, *rest):
        if run.progress.step == 2:
            note_workers(Path(run.config.output), os.getpid())
            action()
        return step(run, *rest)

    monkeypatch.setattr(loop, "train_step", then)


def note_workers(output: Path, process: int) -> None:
    """With the server that has forked them. Workers may come here together, and be killed at any moment: the
    file is there as a whole."""
    part = output.parent / f"workers.{os.getpid()}"
    started = psutil.Process(process).children(recursive=True)
    part.write_text(json.dumps([child.pid for child in started]))
    part.rename(output.parent / "workers.json")


def ended(target, *args) -> int:
    """Exit code of a process of its own, which ends as every Python process does: it waits for the workers
    that are left. Not forked from this one, whose earlier tests may have started autograd's threads, which no
    fork survives."""
    return Fork(call=(target, *args)).wait(GENEROUS)


def run_alone(config, arrange=None) -> None:
    """In the child."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as monkeypatch:
        if arrange is not None:
            arrange(monkeypatch, Path(config.output))
        train(config)


@pytest.mark.parametrize(
    "arrange",
    [
        pytest.param(in_forward, marks=pytest.mark.slow),
        pytest.param(in_evaluation, marks=pytest.mark.slow),
        in_a_worker,
        a_killed_worker,
        an_interrupt_in_a_step,
    ],
)
def test_a_run_that_fails_with_open_workers_is_gone_with_them(tiny_run, tmp_path, arrange):
    """More steps than batches are ready, so that a run misses a worker that is gone."""
    config = tiny_run(data=dict(workers=2), train=dict(steps=20, eval_every=2, save_every=2, log_every=1))
    assert ended(run_alone, config, arrange) == 1
    workers = json.loads((tmp_path / "workers.json").read_text())
    assert workers and not [pid for pid in workers if psutil.pid_exists(pid)]


@pytest.mark.parametrize(
    "start",
    ["forkserver", *(pytest.param(start, marks=pytest.mark.slow) for start in ("fork", "spawn"))],
)
def test_no_worker_outlives_a_run_that_is_killed(tiny_run, tmp_path, start):
    config = tiny_run(data=dict(workers=2, start_workers=start))
    assert ended(run_alone, config, a_kill) == -signal.SIGKILL
    workers = json.loads((tmp_path / "workers.json").read_text())
    until = time.monotonic() + GENEROUS
    while (left := [pid for pid in workers if is_there(pid)]) and time.monotonic() < until:
        time.sleep(0.05)
    assert len(workers) >= 2 and not left


def is_there(pid: int) -> bool:
    """Nobody may collect an orphan that has ended."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_run_whose_output_is_deleted_goes_on_and_saves(tiny_run, tmp_path, monkeypatch):
    while_the_output_is_deleted(monkeypatch, tmp_path / "run")
    train(tiny_run(train=dict(steps=6, save_every=2)))
    assert complete_folders(tmp_path / "run/checkpoints")[0].name == "step_00000006"


@pytest.mark.parametrize(("pause", "steps"), [(60.0, [2]), (-1.0, [])])
def test_a_second_interrupt_ends_at_once_unless_it_is_the_first_one_sent_on(
    tiny_run, tmp_path, monkeypatch, pause, steps
):
    monkeypatch.setattr(signals, "REPEATED", pause)
    before = signal.getsignal(signal.SIGINT)
    after_two_steps(monkeypatch, lambda: [signal.raise_signal(signal.SIGINT) for _ in range(2)])
    with pytest.raises(KeyboardInterrupt) if not steps else nullcontext():
        train(tiny_run())
    assert [folder.name for folder in complete_folders(tmp_path / "run/checkpoints")] == [
        f"step_{step:08d}" for step in steps
    ]
    assert signal.getsignal(signal.SIGINT) is before  # a shell's background jobs ignore it
