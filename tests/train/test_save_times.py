"""When a run is saved: by steps, by epochs, and by the clock of rank 0, to which all ranks agree."""

import pytest
from ranks import together

from pipeline.config.schema import TrainConfig
from pipeline.errors import CheckpointError, ConfigError
from pipeline.run_folder import checkpoints_of, complete_folders, last, step_of
from pipeline.train import loop
from pipeline.train.loop import train
from pipeline.train.meeting import Meeting
from pipeline.train.save_times import SaveTimes
from pipeline.train.storage import read_manifest

MINUTE = 60.0


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def steps_of(folder) -> list[int]:
    return [step_of(found) for found in reversed(complete_folders(checkpoints_of(folder)))]


def test_a_save_is_due_fifteen_minutes_after_the_last_one_began():
    clock = Clock()
    times = SaveTimes(TrainConfig(steps=10), 5.0, clock)
    clock.now += 15 * MINUTE - 1
    assert not times.waited()
    clock.now += 1
    assert times.waited()
    times.begun()
    assert not times.waited()


def test_without_minutes_the_clock_is_not_asked():
    clock = Clock()
    times = SaveTimes(TrainConfig(steps=10, save_minutes=None), 5.0, clock)
    clock.now += 1e9
    assert not times.waited()
    with pytest.raises(ConfigError, match="train.save_minutes is 0"):
        TrainConfig(steps=1, save_minutes=0.0)


@pytest.mark.parametrize(
    ("every", "epoch", "due"),
    [(4, 300.0, [4, 8, 12]), (None, 250.4, [251, 501, 752]), (None, 40.0, [120, 240, 360])],
)
def test_steps_are_counted_or_epochs_of_at_least_a_hundred_steps(every, epoch, due):
    times = SaveTimes(TrainConfig(steps=10, save_every=every), epoch, Clock())
    assert [step for step in range(1, due[-1] + 1) if times.due(step)] == due


def test_all_ranks_hear_of_rank_0s_clock_at_the_same_batch():
    def heard(rank, ranks):
        clock = Clock()
        times, meeting = SaveTimes(TrainConfig(steps=10), 5.0, clock), Meeting(ranks)
        if rank == 0:
            meeting.wants_save = times.waited
        found = []
        for _ in range(3):
            meeting.next(iter([0]), "counts")
            found.append(meeting.save_asked)
            clock.now += 8 * MINUTE
        return found

    assert together(3, heard) == [[False, False, True]] * 3


def test_a_run_is_saved_by_the_clock(tiny_run, tmp_path, monkeypatch):
    """Each step takes 6 minutes."""
    clock = Clock()
    monkeypatch.setattr(SaveTimes.__init__, "__defaults__", (clock,))
    real = loop.train_step

    def slow(*args):
        found = real(*args)
        clock.now += 6 * MINUTE
        return found

    monkeypatch.setattr(loop, "train_step", slow)
    train(tiny_run(train=dict(steps=9, keep_checkpoints=9)))
    assert steps_of(tmp_path / "run") == [4, 8, 9], "asked as the batch of a step is there"


def test_weights_alone_at_the_end_are_read_by_a_finished_run_and_not_trained_on(tiny_run, tmp_path):
    sections = dict(steps=3, save_every=2, save_optimizer_at_end=False)
    folder = train(tiny_run(train=sections))
    root = checkpoints_of(folder)
    assert read_manifest(last(root))["files"].keys() == {"model.safetensors", "ema.safetensors"}
    assert "optimizer.safetensors" in read_manifest(root / "step_00000002")["files"]
    train(tiny_run(train=sections))
    assert steps_of(folder) == [2, 3]
    with pytest.raises(CheckpointError, match="holds weights alone"):
        train(tiny_run(train=sections | dict(steps=5)), "extend")
