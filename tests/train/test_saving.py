"""A checkpoint is written while training goes on; whatever goes wrong is told to every rank."""

import threading

import pytest
import torch
from checkpointkit import BATCH, make_engine
from ranks import ThreadRanks, together
from standin import standin_config

from pipeline.errors import CheckpointError, PipelineError
from pipeline.interfaces import Progress
from pipeline.run_folder import complete_folders
from pipeline.train import checkpoint, loop, saving, storage
from pipeline.train.loop import train
from pipeline.train.saving import Saver

LIMIT = 600
"""Seconds of a wait that ends at once where all is well."""


@pytest.fixture
def held(monkeypatch):
    """Writing waits for this event."""
    go, write = threading.Event(), storage.write_checkpoint

    def when_allowed(*args, **named):
        assert go.wait(LIMIT)
        return write(*args, **named)

    monkeypatch.setattr(storage, "write_checkpoint", when_allowed)
    return go


def facts() -> dict:
    return checkpoint.run_facts(standin_config(), 1) | {"global_batch": BATCH, "streams": {}}


def weight(engine) -> torch.Tensor:
    return engine.module.tasks["a"].weight


def test_training_goes_on_while_a_checkpoint_is_written_which_is_of_the_moment_it_began(tmp_path, held):
    engine = make_engine()
    before = weight(engine).detach().clone()
    with Saver(engine, tmp_path, 3) as saver:
        saver.start(engine, Progress(step=1), {}, facts())
        with torch.no_grad():
            weight(engine).add_(1.0)
        assert saver.settle(wait=False) is None and not complete_folders(tmp_path)
        held.set()
        folder = saver.settle(wait=True)
        assert saver.settle(wait=True) is None, "it is told once"
    assert torch.equal(storage.read_checkpoint(folder).tensors["model.tasks.a.weight"], before)
    assert saver.saved == Progress(step=1)


def test_a_run_that_fails_does_not_wait_long_for_a_disk_that_does_not_answer(tmp_path, held, monkeypatch):
    monkeypatch.setattr(saving, "IN_A_HURRY", 0.1)
    engine, caught = make_engine(), []

    def run() -> None:
        try:
            with Saver(engine, tmp_path, 3) as saver:
                saver.start(engine, Progress(step=1), {}, facts())
                raise ZeroDivisionError
        except ZeroDivisionError as err:
            caught.append(err)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(LIMIT / 10)
    assert caught, "it waits for the disk"
    held.set()


def test_the_end_of_a_run_waits_for_the_last_checkpoint_however_it_ends(tmp_path, held):
    engine = make_engine()
    with pytest.raises(KeyboardInterrupt), Saver(engine, tmp_path, 3) as saver:
        saver.start(engine, Progress(step=1), {}, facts())
        threading.Timer(0.1, held.set).start()
        raise KeyboardInterrupt
    assert storage.read_checkpoint(tmp_path / "step_00000001").facts["step"] == 1


def test_a_failure_behind_an_error_is_not_lost(tmp_path, caplog):
    engine = make_engine()
    with pytest.raises(PipelineError, match="first"), Saver(engine, tmp_path, 3) as saver:
        saver.start(engine, Progress(step=1), {}, {"x": float("nan")})
        raise PipelineError("first")
    assert "step 1 was not saved" in caplog.text


@pytest.mark.parametrize("wait", [True, False])
def test_what_goes_wrong_on_rank_0_is_told_to_every_rank(tmp_path, wait):
    """Here a number that JSON does not know."""
    engine = make_engine()

    def saved(rank, ranks):
        with Saver(ranks, tmp_path, 3) as saver:
            saver.start(engine, Progress(step=2, best=float("nan")), {}, {})
            with pytest.raises(CheckpointError) as caught:
                while saver.settle(wait=wait) is None:
                    pass
        return str(caught.value)

    (message,) = set(together(3, saved))
    assert "step 2 was not saved" in message and "ValueError" in message


def test_ranks_that_wait_hear_of_rank_0_from_time_to_time(tmp_path, monkeypatch, held):
    """A collective of theirs would else outlast its timeout."""
    monkeypatch.setattr(saving, "HEARTBEAT", 0.01)
    engine = make_engine()

    class Releasing(ThreadRanks):
        def gather(self, tensor):
            if self.exchanges == 8:
                held.set()
            return super().gather(tensor)

    def saved(rank, ranks):
        with Saver(ranks, tmp_path, 3) as saver:
            saver.start(engine, Progress(step=1), {}, facts())
            folder = saver.settle(wait=True)
        return folder, ranks.exchanges

    for folder, exchanges in together(2, saved, Releasing):
        assert folder == tmp_path / "step_00000001" and exchanges >= 8


def test_a_run_stops_at_the_next_report_when_two_checkpoints_cannot_be_written(
    tiny_run, tmp_path, monkeypatch
):
    """And the checkpoint before stays."""
    write, steps, failed = storage.write_checkpoint, [], threading.Event()

    def full(root, step, *rest, **named):
        if step < 4:
            return write(root, step, *rest, **named)
        failed.set()
        raise OSError(28, "No space left on device")

    real = loop.train_step

    def step_after_failure(run, *rest):
        if run.progress.step == 4:
            assert failed.wait(LIMIT)
        steps.append(run.progress.step)
        return real(run, *rest)

    monkeypatch.setattr(storage, "write_checkpoint", full)
    monkeypatch.setattr(loop, "train_step", step_after_failure)
    with pytest.raises(CheckpointError, match="step 5 was not saved.*No space left"):
        train(tiny_run(train=dict(steps=20, save_every=2, log_every=5, eval_every=None)))
    assert steps[-1] == 4, "the report of step 5 tells it"
    assert [folder.name for folder in complete_folders(tmp_path / "run/checkpoints")] == ["step_00000002"]
