"""A disk that fails, a file that is gone or another one, and a worker that hangs are no bad samples: a run
waits for a while, and then stops."""

import errno
import logging
import os
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from shardkit import config, samples, write_tar

from pipeline.data.make.existing import index_shards
from pipeline.data.shards import patience, storage
from pipeline.data.stream import build_eval_loader, build_stream
from pipeline.errors import PipelineError, StorageError


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(patience, "PAUSE", 0.01)
    monkeypatch.setattr(patience, "LONGEST_PAUSE", 0.05)


@pytest.fixture
def shards(tmp_path) -> Path:
    tars = [str(write_tar(tmp_path / f"part-{number}.tar", samples(f"s{number}", 4))) for number in range(4)]
    index_shards(tars, tmp_path, classes=["a", "b", "c"])
    return tmp_path


def take(folder: Path, count: int = 6, **options):
    return list(islice(build_stream("t", config(folder, **options), seed=0, rank=0, world_size=1), count))


class Disk:
    """os.pread as a disk has it that fails: so many times with `number`, or for as long as the descriptors
    that are open."""

    def __init__(self, number: int, times: int = 10**9, dead: frozenset[int] = frozenset()):
        self.number, self.left, self.dead, self.good = number, times, dead, os.pread

    def __call__(self, file: int, size: int, offset: int) -> bytes:
        if self.left > 0 and (not self.dead or file in self.dead):
            self.left -= 1
            raise OSError(self.number, os.strerror(self.number))
        return self.good(file, size, offset)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENETDOWN, errno.ETIMEDOUT])
def test_a_disk_that_fails_for_a_while_loses_no_sample(shards, monkeypatch, number):
    whole = take(shards)
    monkeypatch.setattr(os, "pread", disk := Disk(number, times=12))
    for one, other in zip(whole, take(shards, max_bad_samples=0), strict=True):
        assert one.keys == other.keys and torch.equal(one.images, other.images)
    assert disk.left == 0


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_disk_that_goes_on_failing_stops_the_run_with_the_shard(shards, monkeypatch, number):
    monkeypatch.setattr(os, "pread", Disk(number))
    with pytest.raises(
        StorageError, match=rf"part-\d.tar: {os.strerror(number)} \(\d+ attempts in .*then resume"
    ):
        take(shards, max_wait=0.5)


def test_a_dead_descriptor_is_opened_anew(shards, monkeypatch):
    stream = build_stream("t", config(shards, shuffle_shards=4, max_wait=5.0), seed=0, rank=0, world_size=1)
    batches = iter(stream)
    first = next(batches).keys
    opened = dict(stream.reader._reader._files)
    monkeypatch.setattr(os, "pread", Disk(errno.ESTALE, dead=frozenset(opened.values())))
    monkeypatch.setattr(os, "close", lambda file: None)  # or else the number of a closed one is given again
    later = [next(batches).keys for _ in range(5)]
    monkeypatch.undo()
    assert [first, *later] == [batch.keys for batch in take(shards, shuffle_shards=4)]


@pytest.mark.parametrize("name", ["part-3.tar", "part-3.tar.index"])
def test_a_file_that_is_gone_stops_the_run(shards, name):
    stream = build_stream("t", config(shards, max_wait=1000), seed=0, rank=0, world_size=1)
    os.unlink(shards / name)
    with pytest.raises(StorageError, match=f"{name} is missing; restore it"):
        list(islice(stream, 6))
    assert stream.bad_samples == 0


MOVED = "moved there"
CHANGES = {
    "cut off": lambda path: os.truncate(path, 1024),
    "emptied": lambda path: os.truncate(path, 0),
    "longer": lambda path: path.write_bytes(path.read_bytes() + bytes(512)),
    "another": lambda path: path.write_bytes(
        write_tar(path.parent / "other" / "x.tar", samples("x", 40)).read_bytes()
    ),
    MOVED: lambda path: os.replace(write_tar(path.parent / "other" / "x.tar", samples("x", 40)), path),
}
"""What happens to a shard during a run. One that is MOVED there leaves the old file, which is right, to
those who have it open."""


@pytest.mark.parametrize(
    ("name", "opened"),
    [(name, False) for name in CHANGES] + [(name, True) for name in CHANGES if name != MOVED],
)
def test_a_shard_of_another_size_stops_the_run(shards, name, opened):
    stream = build_stream("t", config(shards, shuffle_shards=4, max_wait=0.5), seed=0, rank=0, world_size=1)
    batches = iter(stream)
    if opened:
        next(batches)
    for path in shards.glob("part-*.tar"):
        CHANGES[name](path)
    with pytest.raises(
        StorageError,
        match=r"part-\d.tar: \d+ bytes are there and the manifest says \d+.*restore it.*attempts",
    ):
        list(islice(batches, 6))
    assert stream.bad_samples == 0


@pytest.mark.parametrize("name", CHANGES)
def test_a_shard_that_is_restored_meanwhile_loses_no_sample(shards, monkeypatch, name):
    whole, tars = take(shards), {path: path.read_bytes() for path in shards.glob("part-*.tar")}
    pauses: list[float] = []

    def restore(pause: float) -> None:
        pauses.append(pause)
        for path, data in tars.items():
            path.write_bytes(data)

    stream = build_stream("t", config(shards, max_bad_samples=0), seed=0, rank=0, world_size=1)
    for path in tars:
        CHANGES[name](path)
    monkeypatch.setattr(patience.time, "sleep", restore)
    for one, other in zip(whole, islice(stream, 6), strict=True):
        assert one.keys == other.keys and torch.equal(one.images, other.images)
    assert len(pauses) == 1


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("content", ["", "{", "null", "another shard's", "huge"])
def test_a_damaged_index_stops_at_once_with_the_way_out(shards, monkeypatch, content, split):
    options: dict[str, Any] = dict(rank=0, world_size=1)
    batches = (
        build_stream("t", config(shards), seed=0, **options)
        if split == "train"
        else build_eval_loader("t", config(shards), **options)
    )
    index = shards / "part-2.tar.index"
    data = (shards / "part-1.tar.index").read_bytes() if content == "another shard's" else content.encode()
    index.write_bytes(data)
    if content == "huge":
        os.truncate(index, storage.MAX_TEXT + 1)
    monkeypatch.setattr(patience.time, "sleep", lambda pause: pytest.fail("asked again"))
    with pytest.raises(StorageError, match=r"part-2.tar.index.*make it anew: `dtem shards make index"):
        list(islice(batches, 6))
    assert batches.bad_samples == 0


def test_a_worker_that_hangs_is_told_with_its_shard_and_then_stops_the_run(tmp_path, caplog):
    """A shard behind a pipe that nobody fills, as on a network disk that does not answer."""
    tars = [str(write_tar(tmp_path / f"part-{number}.tar", samples(f"s{number}", 4))) for number in range(2)]
    index_shards(tars, tmp_path, classes=["a", "b", "c"])
    loader = build_eval_loader(
        "t", config(tmp_path, workers=1, eval_batch_size=1, max_wait=1.5), rank=0, world_size=1
    )
    os.unlink(tars[1])
    os.mkfifo(tars[1])
    start, seen = time.monotonic(), 0
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(PipelineError, match=r"no batch came for [12] s.* part-1.tar, sample 's1_000'"),
    ):
        for batch in loader:
            seen += len(batch.keys)
    assert seen == 4 and time.monotonic() - start > 1.5
    assert [
        record
        for record in caplog.records
        if "waiting for a batch" in record.getMessage() and "part-1.tar" in record.getMessage()
    ]
