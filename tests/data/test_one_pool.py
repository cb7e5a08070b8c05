"""Tasks that share a pool of workers get the batches that their own workers would make."""

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import cycle, islice
from typing import Any

import pytest
import torch
from shardkit import config, samples, write_tar

from pipeline.data.lanes import Share
from pipeline.data.loading import Made, _Turns
from pipeline.data.make.existing import index_shards
from pipeline.data.one_pool import batches_of_all
from pipeline.data.quarantine import Loaded
from pipeline.data.stream import TrainStream, build_stream
from pipeline.errors import StorageError
from pipeline.interfaces import Batch

PLAN = ["a", "b", "b", "c", "a", "b", "c", "c", "a", "b", "a", "a"]
"""Tasks of twelve batches, as a run that draws them could take them."""
SIZES = {"a": 4, "b": 6, "c": 2}


def streams(folder, workers: int, **options: Any) -> dict[str, TrainStream]:
    made = config(folder, workers=workers, **options)
    return {
        task: build_stream(task, made, seed=5, rank=0, world_size=1, batch_size=size)
        for task, size in SIZES.items()
    }


def taken(opened: dict[str, Iterator[Batch]], plan: list[str]) -> list[Batch]:
    return [next(opened[task]) for task in plan]


def assert_same(found: list[Batch], expected: list[Batch]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one.task, one.keys) == (other.task, other.keys)
        assert torch.equal(one.images, other.images) and torch.equal(one.targets.labels, other.targets.labels)


@pytest.fixture(scope="module")
def alone(uneven) -> list[Batch]:
    return taken({task: iter(stream) for task, stream in streams(uneven, 0).items()}, PLAN)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pool_gives_each_task_what_its_own_workers_would(uneven, alone, workers):
    before = len(multiprocessing.active_children())
    opened = batches_of_all(streams(uneven, workers), cycle(PLAN))
    assert len(multiprocessing.active_children()) == before, "none is asked for yet"
    assert_same(taken(opened, PLAN[:5]), alone[:5])
    assert len(multiprocessing.active_children()) - before == workers, "and not as many for each task"
    assert_same(taken(opened, PLAN[5:]), alone[5:])


@pytest.mark.parametrize("done", [1, 5])
def test_positions_are_those_of_the_batches_that_were_used(uneven, alone, done):
    """What workers of the pool have ready is not counted, for any task."""
    first, second = streams(uneven, 2), streams(uneven, 1)
    taken(batches_of_all(first, cycle(PLAN)), PLAN[:done])
    for task, stream in second.items():
        state = first[task].state_dict()
        assert state["samples"] == SIZES[task] * PLAN[:done].count(task)
        stream.load_state_dict(state)
    assert_same(taken(batches_of_all(second, iter(PLAN[done:])), PLAN[done:]), alone[done:])


def test_tasks_may_be_asked_in_another_order_than_planned(uneven, alone):
    found = {"a": [], "b": [], "c": []}
    opened = batches_of_all(streams(uneven, 2), cycle(PLAN))
    for task in sorted(PLAN, reverse=True):
        found[task].append(next(opened[task]))
    for task in found:
        assert_same(found[task], [batch for batch in alone if batch.task == task])


def test_storage_that_fails_is_the_error_of_its_task_alone(uneven, tmp_path):
    """The batches before that of the task whose shard is gone are still given."""
    write_tar(tmp_path / "lost-0.tar", samples("l", 6))
    index_shards([str(tmp_path / "lost-0.tar")], tmp_path)
    own = streams(uneven, 2) | {
        "c": build_stream(
            "c", config(tmp_path, workers=2, max_wait=0.5), seed=5, rank=0, world_size=1, batch_size=2
        )
    }
    (tmp_path / "lost-0.tar").unlink()
    opened = batches_of_all(own, cycle(PLAN))
    assert [batch.task for batch in taken(opened, PLAN[:3])] == PLAN[:3]
    with pytest.raises(StorageError, match="lost-0.tar"):
        next(opened["c"])


def test_a_wait_that_is_too_long_names_the_task_at_work(uneven):
    pauses = iter([2.5])

    def hangs(shard: int, members: dict[str, bytes]) -> dict[str, bytes]:
        time.sleep(next(pauses, 0))
        return members

    own = streams(uneven, 1, max_wait=0.5)
    own["b"].disturb(hangs)
    opened = batches_of_all(own, cycle(PLAN))
    next(opened["a"])
    with pytest.raises(StorageError, match=r"no batch came.*task 'b': part-.*tar, sample"):
        next(opened["b"])


def test_batches_come_in_order_however_they_are_made_and_few_wait_for_a_late_one():
    """Worker after worker gives what it was asked for, but the one that was asked first comes last."""
    share, late, most = Share(0, 1, range(1)), 3, 4
    turns = _Turns((("t", share) for _ in range(20)), most)
    asked = turns.asked()

    def made() -> Iterator[Made]:
        queue = list(islice(asked, late))
        rests = 0
        while queue:
            one = queue.pop(0 if rests > 2 or len(queue) == 1 else 1)
            rests += one.share is None
            yield Made(one.number, one.task, None if one.share is None else Loaded(None, one.number, ()))
            queue += islice(asked, 1)
        assert rests > 2, "those behind a late batch are made until enough of them wait"

    with closing(made()) as source:
        found = [loaded.tried for _, loaded in turns.taken(source)]
    assert found == list(range(20))
