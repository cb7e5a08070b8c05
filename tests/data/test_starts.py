"""Workers give the same batches however their processes start."""

import multiprocessing
import os
import signal
import sys
import time
from contextlib import closing
from itertools import islice
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from shardkit import config, image
from workers import Stuck, tell

from launch.published.batches import held_out_batches, training_batches
from launch.published.pictures import find_pictures
from pipeline.config import modules
from pipeline.config.schema import AugmentConfig, Preprocessing
from pipeline.data.layouts.image_folders import Picture
from pipeline.data.layouts.item_file import ItemFile
from pipeline.data.layouts.tree import shuffled
from pipeline.data.loading import context_of
from pipeline.data.samples.protocol import DATASETS
from pipeline.data.stream import build_eval_loader, build_stream
from pipeline.interfaces import Batch
from pipeline.train.faults.data import Disturbance

ANEW = ["forkserver", pytest.param("spawn", marks=pytest.mark.slow)]
SCHEMA = '''
from pipeline.data.samples.classification import Classification
from pipeline.data.samples.protocol import DATASETS


@DATASETS.register("mine")
class Mine(Classification):
    """Of a user."""
'''


def loaded(source: Path, start: str, workers: int, **more: Any) -> list[Batch]:
    augment = AugmentConfig(rand_augment="rand-m9-mstd0.5-inc1", random_erasing=0.5, on_device=True)
    options = config(source, workers=workers, start_workers=start, augment=augment, **more)
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


@pytest.mark.parametrize("start", ANEW)
def test_a_schema_of_a_module_that_was_named_needs_no_fork(uneven, tmp_path, monkeypatch, start):
    """Its folder is on no path of imports, as that of a config."""
    monkeypatch.setattr(DATASETS, "_factories", dict(DATASETS._factories))
    monkeypatch.setattr(modules, "_IMPORTED", {})
    monkeypatch.setitem(sys.modules, "schema_of_mine", None)
    monkeypatch.delitem(sys.modules, "schema_of_mine")
    (tmp_path / "schema_of_mine.py").write_text(SCHEMA)
    modules.import_named("schema_of_mine", [str(tmp_path)], "--import")
    assert all(map(the_same, loaded(uneven, start, 1, schema="mine"), loaded(uneven, "fork", 0)))


def kill_who_is_stuck(place: Path) -> None:
    while not (place.is_file() and place.read_text().endswith("\n")):
        time.sleep(0.05)
    os.kill(int(place.read_text()), signal.SIGKILL)


@pytest.mark.parametrize("start", ["fork", *ANEW])
def test_a_worker_that_is_killed_is_missed_while_others_rest(uneven, tmp_path, start):
    """Not only once data.max_wait is over, which then would be told of a storage."""
    stream = build_stream(
        "t", config(uneven, workers=2, start_workers=start, max_wait=30.0), seed=3, rank=0, world_size=1
    )
    stream.disturb(Stuck(tmp_path / "stuck"))
    Thread(target=kill_who_is_stuck, args=(tmp_path / "stuck",), daemon=True).start()
    with pytest.raises(RuntimeError, match=r"worker .*(killed by signal|exited unexpectedly)"):
        for _ in stream:
            pass


@pytest.mark.parametrize("start", ANEW)
def test_a_list_on_the_disk_is_sent_as_its_files(start):
    """Not as its items, which each worker would hold."""
    pictures = ItemFile((Picture(f"{n}.png", str(n), n % 3) for n in range(9)), Picture)
    lists = [pictures, shuffled(pictures, "pictures", "train", 0)[2:8], pictures[::-2]]
    context = context_of(start)
    answer, other_end = context.Pipe()
    process = context.Process(target=tell, args=(lists, other_end))
    process.start()
    other_end.close()
    assert answer.recv() == [
        (name, list(items)) for name, items in zip(("ItemFile", "Picked", "Picked"), lists, strict=True)
    ]
    process.join()


@pytest.mark.parametrize("stored", ["files", "shards"])
def test_pictures_of_a_published_model_need_no_fork(uneven, tmp_path, monkeypatch, stored):
    if stored == "files":
        for number in range(9):
            (tmp_path / f"{number}.png").write_bytes(image(number))
    source = str(tmp_path if stored == "files" else uneven)
    expected = pictures_of(source, workers=0)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    found = pictures_of(source, workers=1)
    assert len(found) == len(expected) > 3 and all(map(torch.equal, found, expected))


def pictures_of(source: str, workers: int) -> list[torch.Tensor]:
    """Images of two batches to learn from, and of all that are measured on."""
    pictures = find_pictures(source)
    what = pictures, range(len(pictures)), (8, 8), Preprocessing(mean=(0.1, 0.2, 0.3))
    endless = training_batches(*what, batch_size=3, seed=1, workers=workers, crop_scale=(0.3, 1.0))
    with closing(endless):
        batches = [*islice(endless, 2), *held_out_batches(*what, batch_size=4, workers=workers)]
    return [batch.to("cpu").images for batch in batches]
