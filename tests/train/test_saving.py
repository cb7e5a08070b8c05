"""A checkpoint is written while training goes on; whatever goes wrong is told to every rank."""

import threading
from contextlib import nullcontext

import pytest
import torch
from checkpointkit import BATCH, make_engine, save
from ranks import ThreadRanks, together
from standin import standin_config

from pipeline.errors import CheckpointError, PipelineError
from pipeline.interfaces import Progress
from pipeline.run_folder import complete_folders, pointed
from pipeline.train import branches, checkpoint, loop, mirror, saving, storage
from pipeline.train.faults.injection import Injection
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


@pytest.mark.parametrize("signalled", [True, False])
def test_a_save_that_failed_costs_no_other_one(tiny_run, tmp_path, signalled):
    """The disk was full at step 4. The next save is at step 6, as the run is asked to stop, or at step 8."""
    faults = ["enospc@save=1", *(["kill@step=6,what=term"] if signalled else [])]
    train(
        tiny_run(train=dict(steps=8, save_every=4, log_every=100, eval_every=None)), faults=Injection(faults)
    )
    saved = [folder.name[-1] for folder in complete_folders(tmp_path / "run/checkpoints")]
    assert saved == (["6"] if signalled else ["8"])


def test_a_last_save_that_fails_is_made_again(tiny_run, tmp_path):
    config = tiny_run(train=dict(steps=4, save_every=100, eval_every=None))
    train(config, faults=Injection(["enospc@save=1"]))
    assert [folder.name[-1] for folder in complete_folders(tmp_path / "run/checkpoints")] == ["4"]


def test_a_best_checkpoint_that_was_not_saved_is_not_the_best(tiny_run, tmp_path, monkeypatch):
    """Else nothing of what is saved would be it."""
    scores = iter([0.9, 0.5, 0.4])
    monkeypatch.setattr(loop, "ranking_score", lambda *_: next(scores))
    settings = dict(steps=6, save_every=100, eval_every=2, log_every=1, keep_checkpoints=9)
    train(tiny_run(train=settings), faults=Injection(["enospc@save=1"]))
    root = tmp_path / "run/checkpoints"
    best = pointed(root, "best")
    assert best in complete_folders(root) and best.name == "step_00000004"
    progress = storage.read_manifest(root / "step_00000006")["progress"]
    assert (progress["best"], progress["best_step"]) == (0.5, 4)


@pytest.mark.parametrize("restarted", [True, False])
def test_the_best_checkpoint_stays_where_its_pointer_was_not_moved(tmp_path, monkeypatch, restarted):
    engine = make_engine()
    save(engine, tmp_path, 1, keep=1, best=1)
    with monkeypatch.context() as patch:
        patch.setattr(saving, "point", failing)
        save(engine, tmp_path, 2, keep=1, best=2)
    assert pointed(tmp_path, "best").name == "step_00000001"
    if restarted:
        branches.make_lasting(engine, tmp_path, branches.choose(engine, tmp_path, "auto", None))
        assert pointed(tmp_path, "best").name == "step_00000002"
    save(engine, tmp_path, 3, keep=1, best=2)
    assert pointed(tmp_path, "best").name == "step_00000002"
    assert [folder.name[-1] for folder in complete_folders(tmp_path)] == ["3", "2"]


def failing(*_: object) -> None:
    raise OSError(5, "Input/output error")


def test_an_old_checkpoint_that_cannot_be_removed_stops_no_save(tmp_path, monkeypatch, caplog):
    """A reader on NFS has it open."""
    engine, remove = make_engine(), storage.shutil.rmtree
    for step in (1, 2):
        save(engine, tmp_path, step)
    monkeypatch.setattr(
        storage.shutil, "rmtree", lambda path: failing() if "replaced" in path.name else remove(path)
    )
    for step in (3, 4):
        assert save(engine, tmp_path, step, keep=1).name == f"step_0000000{step}"
    assert [folder.name[-1] for folder in complete_folders(tmp_path)] == ["4"]
    assert "is not removed yet" in caplog.text
    monkeypatch.undo()
    save(engine, tmp_path, 5, keep=1)
    assert not list(tmp_path.glob(".*"))


def test_a_mirror_that_takes_long_stops_no_step_and_copies_the_newest_then(tiny_run, tmp_path, monkeypatch):
    trained, put, copied, real = threading.Event(), mirror.Mirror.put, [], loop.train_step

    def slow(self, folder, keep):
        assert trained.wait(LIMIT)
        copied.append(folder.name[-1])
        put(self, folder, keep)

    def step(run, *rest):
        norm = real(run, *rest)
        if run.progress.step == 11:
            trained.set()
        return norm

    monkeypatch.setattr(mirror.Mirror, "put", slow)
    monkeypatch.setattr(loop, "train_step", step)
    place = str(tmp_path / "mirror")
    train(tiny_run(train=dict(steps=12, save_every=2, eval_every=None, keep_checkpoints=1, mirror=place)))
    assert len(copied) <= 4, "those that came while it was busy are left out"
    assert mirror.mirror_at(place).names()[0] == "step_00000012"


@pytest.mark.parametrize("fails", [True, False])
def test_a_run_that_fails_or_is_stopped_does_not_wait_for_its_mirror(
    tiny_run, tmp_path, monkeypatch, caplog, fails
):
    for_ever, real = threading.Event(), loop.train_step
    monkeypatch.setattr(saving, "IN_A_HURRY", 0.01)
    monkeypatch.setattr(mirror.Mirror, "put", lambda *_: for_ever.wait())

    def step(run, *rest):
        if fails and run.progress.step == 3:
            run.saver.settle(wait=True)
            raise RuntimeError("a bug")
        return real(run, *rest)

    monkeypatch.setattr(loop, "train_step", step)
    config = tiny_run(train=dict(steps=6, save_every=2, mirror=str(tmp_path / "mirror")))
    with pytest.raises(RuntimeError, match="a bug") if fails else nullcontext():
        train(config, faults=Injection([] if fails else ["kill@step=3,what=term"]))
    for_ever.set()
    assert "is copied to" in caplog.text and "the next start copies what is newest then" in caplog.text
