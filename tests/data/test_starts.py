"""Workers give the same batches however their processes start."""

import multiprocessing
from itertools import islice
from pathlib import Path

import pytest
import torch
from shardkit import config, image

from pipeline.config.schema import AugmentConfig
from pipeline.data.loading import context_of
from pipeline.data.stream import build_eval_loader, build_stream
from pipeline.interfaces import Batch
from pipeline.train.faults.data import Disturbance

ANEW = ["forkserver", pytest.param("spawn", marks=pytest.mark.slow)]


def loaded(source: Path, start: str, workers: int) -> list[Batch]:
    augment = AugmentConfig(rand_augment="rand-m9-mstd0.5-inc1", random_erasing=0.5, on_device=True)
    options = config(source, workers=workers, start_workers=start, augment=augment)
    batches = list(islice(build_stream("t", options, seed=3, rank=0, world_size=1), 4))
    held = build_eval_loader("t", options, rank=0, world_size=1, split="train", classes=("c", "a", "b"))
    return [*batches, *held]


def the_same(one: Batch, other: Batch) -> bool:
    return (
        one.keys == other.keys
        and torch.equal(one.targets.labels, other.targets.labels)
        and torch.equal(one.to("cpu").images, other.to("cpu").images)
    )


@pytest.mark.parametrize("start", ANEW)
def test_a_worker_that_is_not_forked_makes_the_same_batches(uneven, start):
    found, expected = loaded(uneven, start, 1), loaded(uneven, "fork", 0)
    assert len(found) == len(expected) and all(map(the_same, found, expected))
    labels = torch.cat([batch.targets.labels for batch in found[4:]])
    assert set(labels.tolist()) == {0, 1, 2}


def test_pictures_in_files_of_their_own_need_no_fork(tmp_path):
    for number in range(9):
        place = tmp_path / "abc"[number % 3] / f"{number}.png"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(image(number))
    assert all(map(the_same, loaded(tmp_path, "forkserver", 1), loaded(tmp_path, "fork", 0)))


def test_a_fault_reaches_a_worker_that_is_not_forked(uneven):
    options = config(uneven, workers=1, start_workers="forkserver")
    stream, disturbance = build_stream("t", options, seed=3, rank=0, world_size=1), Disturbance()
    stream.disturb(disturbance)
    disturbance.corrupt_next()
    next(iter(stream))
    assert stream.bad_samples > 0


@pytest.mark.parametrize(("cuda", "start"), [(True, "forkserver"), (False, "fork")])
def test_a_process_that_uses_cuda_is_not_forked(monkeypatch, cuda, start):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: cuda)
    assert context_of("auto").get_start_method() == start


@pytest.mark.cuda
def test_workers_of_a_process_that_uses_cuda_come_from_a_server(uneven):
    torch.zeros(1, device="cuda")
    batches = iter(build_stream("t", config(uneven, workers=1), seed=3, rank=0, world_size=1))
    next(batches)
    assert {type(child).__name__ for child in multiprocessing.active_children()} == {"ForkServerProcess"}
