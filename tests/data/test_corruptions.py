"""Each way in which a sample or a shard is broken, for each task and two ranks: it is counted exactly and
named, batches keep their size, and the limits are kept."""

import gzip
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shardkit import encoded, write_tar
from tinyrun import tiny_tasks_plain

from pipeline.config.load import from_plain
from pipeline.config.schema import DataConfig
from pipeline.data.make.digits.scenes import CLASSES, MASK_CLASSES
from pipeline.data.make.existing import index_shards
from pipeline.data.shards.find import load_manifest
from pipeline.data.shards.index import SUFFIX, ShardIndex
from pipeline.data.stream import build_eval_loader, build_stream
from pipeline.errors import SampleError, StorageError

Change = Callable[[dict[str, bytes]], dict[str, bytes]]
SIZE, RANKS, BATCH = 8, 2, 2
"""Samples of each of two shards; ranks; samples of a batch."""
BAD = (2, 5)
"""The bad samples of the second shard."""


def with_data(suffix: str, data: bytes) -> Change:
    return lambda members: members | {suffix: data}


def without(suffix: str) -> Change:
    return lambda members: {name: data for name, data in members.items() if name != suffix}


def flipped(suffix: str) -> Change:
    """Every byte of the member is changed in one bit."""
    return lambda members: members | {suffix: bytes(byte ^ 1 for byte in members[suffix])}


def half(suffix: str) -> Change:
    return lambda members: members | {suffix: members[suffix][: len(members[suffix]) // 2]}


def picture(mode: str, form: str, **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32), dtype=np.uint8)
    return encoded(Image.fromarray(pixels).convert(mode), form, **options)


IMAGES = {
    "no image": without("jpg"),
    "image of 0 bytes": with_data("jpg", b""),
    "half an image": half("jpg"),
    "flipped bits of an image": flipped("jpg"),
    "text as an image": with_data("jpg", b"import os\n" * 50),
    "animation as an image": with_data("jpg", picture("P", "GIF")),
}
OF_TASK = {
    "digits": {
        "no class": without("cls"),
        "class of 0 bytes": with_data("cls", b""),
        "class that is a word": with_data("cls", b"cat"),
        "class above the last one": with_data("cls", b"99"),
        "class below 0": with_data("cls", b"-1"),
    },
    "captions": {
        "no captions": without("json"),
        "captions of 0 bytes": with_data("json", b""),
        "half of the captions": half("json"),
        "captions that are not UTF-8": with_data("json", b'{"captions": ["\xff\xfe"]}'),
        "captions that are a number": with_data("json", b'{"captions": 7}'),
    },
    "masks": {
        "no mask": without("seg.png"),
        "mask of 0 bytes": with_data("seg.png", b""),
        "half a mask": half("seg.png"),
        "mask of another size": with_data("seg.png", encoded(Image.new("L", (9, 9)), "PNG")),
        "mask in colour": with_data("seg.png", encoded(Image.new("RGB", (32, 32)), "PNG")),
        "mask of 16 bits": with_data("seg.png", encoded(Image.new("I;16", (32, 32)), "PNG")),
    },
}
FINE = {
    "image in CMYK": with_data("jpg", picture("CMYK", "JPEG")),
    "image in grey": with_data("jpg", picture("L", "JPEG")),
    "image of 16 bits": with_data("jpg", encoded(Image.new("I;16", (32, 32)), "PNG")),
}
CASES = [(task, name) for task, own in OF_TASK.items() for name in (*IMAGES, *own)]


@pytest.fixture(scope="module")
def members(digits) -> list[dict[str, bytes]]:
    """Of 16 samples."""
    path = sorted(digits.glob("train-*.tar"))[0]
    index = ShardIndex.from_bytes(Path(f"{path}{SUFFIX}").read_bytes(), path.stat().st_size)
    data = path.read_bytes()
    places = (index.members(sample) for sample in range(2 * SIZE))
    return [{name: data[at : at + size] for name, (at, size) in found.items()} for found in places]


def made(folder: Path, members: list[dict[str, bytes]], change: Change) -> Path:
    """Two shards, of which the second has bad samples."""
    tars = []
    for shard in range(2):
        parts = []
        for number in range(SIZE):
            found = members[shard * SIZE + number]
            found = change(found) if shard == 1 and number in BAD else found
            parts += [(f"s{shard}_{number}.{name}", data) for name, data in found.items()]
        tars.append(str(write_tar(folder / f"part-{shard}.tar", parts)))
    index_shards(tars, folder, classes=CLASSES, mask_classes=MASK_CLASSES)
    return folder


def settings(task: str, folder: Path, **options: object) -> DataConfig:
    plain = tiny_tasks_plain(folder, folder / "run")
    plain["tasks"][task]["data"] |= {"allow_overlap": True, **options}
    return from_plain(plain).tasks[task].data


def epochs(data: DataConfig, number: int) -> list[list[list[str]]]:
    """The keys of each batch of each rank over so many epochs, and the bad samples of each rank."""
    steps = number * 2 * SIZE // (RANKS * BATCH)
    streams = [
        build_stream("t", data, seed=1, rank=rank, world_size=RANKS, batch_size=BATCH)
        for rank in range(RANKS)
    ]
    keys = [[list(batch.keys) for batch in islice(stream, steps)] for stream in streams]
    return [*keys, [stream.bad_samples for stream in streams]]


@pytest.mark.parametrize(("task", "name"), CASES)
def test_a_bad_sample_is_counted_exactly_and_the_run_goes_on(tmp_path, members, task, name):
    folder = made(tmp_path, members, (IMAGES | OF_TASK[task])[name])
    *keys, bad = epochs(settings(task, folder, shuffle_shards=1), 3)
    assert sum(bad) == 3 * len(BAD)
    assert all(len(batch) == BATCH for rank in keys for batch in rank)
    seen = {key for rank in keys for batch in rank for key in batch}
    assert seen == {f"s{shard}_{n}" for shard in range(2) for n in range(SIZE) if shard == 0 or n not in BAD}


@pytest.mark.parametrize(("task", "name"), CASES)
def test_evaluation_leaves_it_out_and_says_how_many(tmp_path, members, task, name):
    folder = made(tmp_path, members, (IMAGES | OF_TASK[task])[name])
    data = settings(task, folder)
    loaders = [build_eval_loader("t", data, rank=rank, world_size=RANKS) for rank in range(RANKS)]
    keys = [key for loader in loaders for batch in loader for key in batch.keys]
    assert len(keys) == len(set(keys)) == 2 * SIZE - len(BAD)
    assert sum(loader.bad_samples for loader in loaders) == len(BAD)


@pytest.mark.parametrize("task", OF_TASK)
@pytest.mark.parametrize("name", FINE)
def test_an_unusual_image_is_read(tmp_path, members, task, name):
    *_, bad = epochs(settings(task, made(tmp_path, members, FINE[name])), 1)
    assert sum(bad) == 0


@pytest.mark.parametrize("task", OF_TASK)
def test_the_limit_in_a_row_stops_the_rank_that_meets_it(tmp_path, members, task):
    data = settings(task, made(tmp_path, members, without("jpg")), max_bad_samples=0)
    with pytest.raises(SampleError, match="1 bad sample in a row, the last one: part-1.tar"):
        epochs(data, 1)


SHARD: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "of 0 bytes": lambda path: path.write_bytes(b""),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:3000]),
    "packed by gzip": lambda path: path.write_bytes(gzip.compress(path.read_bytes())),
    "longer": lambda path: path.write_bytes(path.read_bytes() + bytes(10_240)),
}


@pytest.mark.parametrize("task", OF_TASK)
@pytest.mark.parametrize("name", SHARD)
def test_a_shard_that_breaks_during_a_run_stops_it_by_its_name(tmp_path, members, task, name):
    folder = made(tmp_path, members, dict)
    data = settings(task, folder, max_wait=1)
    stream = build_stream("t", data, seed=1, rank=0, world_size=1, batch_size=BATCH)
    SHARD[name](folder / "part-1.tar")
    with pytest.raises(StorageError, match=r"part-1\.tar"):
        list(islice(stream, 2 * SIZE // BATCH))


@pytest.mark.parametrize("name", SHARD)
def test_a_shard_that_is_broken_at_the_start_is_refused_by_its_name(tmp_path, members, name):
    folder = made(tmp_path, members, dict)
    SHARD[name](folder / "part-1.tar")
    with pytest.raises((SampleError, StorageError), match=r"part-1\.tar"):
        load_manifest(str(folder))
