"""The binary index of a shard: what is read is what was written, and nothing that was damaged leads outside
of its shard."""

import hashlib
import os
import random
import shutil
import tarfile
import tracemalloc
from itertools import islice
from pathlib import Path

import pytest
import torch
from derived import as_before, json_index
from shardkit import config, image, samples, write_tar

from pipeline.data.make.tar_writer import TarWriter
from pipeline.data.shards.cache import ShardCache
from pipeline.data.shards.find import load_manifest
from pipeline.data.shards.index import ShardIndex, parse_index
from pipeline.data.shards.indexes import load_index
from pipeline.data.shards.reader import GAP, SampleReader
from pipeline.data.shards.tar_index import index_tar
from pipeline.data.stream import build_stream
from pipeline.errors import SampleError, StorageError

UNEVEN = [
    ("a/é1.jpg", b"1"),
    ("a/é1.cls", b""),
    ("b.cls", b"12"),
    ("b.seg.png", b"x" * 5000),
    ("c.jpg", b"3" * 700),
]


@pytest.fixture
def tar(tmp_path) -> Path:
    return write_tar(tmp_path / "x.tar", UNEVEN)


def test_what_is_stored_is_what_comes_back(tar):
    index, size = index_tar(tar), tar.stat().st_size
    assert index.keys == ("a/é1", "b", "c") and index.suffixes == ("cls", "jpg", "seg.png")
    again = ShardIndex.from_bytes(index.to_bytes(), size)
    data = tar.read_bytes()
    for sample, key in enumerate(index.keys):
        members = again.members(sample)
        assert again.key(sample) == key and members == index.members(sample)
        for suffix, (offset, length) in members.items():
            assert data[offset : offset + length] == dict(UNEVEN)[f"{key}.{suffix}"]
    assert again.members(1, ("cls", "jpg")) == {"cls": index.members(1)["cls"]}
    assert again.to_bytes() == index.to_bytes()


def test_damaged_indexes_are_refused_or_stay_inside_of_their_shard(tar):
    """Cut at every byte, and with random bytes at random places."""
    data, size = index_tar(tar).to_bytes(), tar.stat().st_size
    for cut in range(len(data)):
        with pytest.raises(ValueError):
            ShardIndex.from_bytes(data[:cut], size)
    rng, refused = random.Random(0), 0
    tracemalloc.start()
    for _ in range(3000):
        changed = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            changed[rng.randrange(len(data))] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        try:
            index = ShardIndex.from_bytes(bytes(changed), size)
        except ValueError:
            refused += 1
            continue
        for sample in range(len(index)):
            assert index.key(sample)
            assert all(0 <= at <= at + long <= size for at, long in index.members(sample).values())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused > 1000 and peak < 2**20, "no count in a header takes memory before it is checked"


def test_only_the_index_that_the_manifest_names_is_taken(tar):
    index, size = index_tar(tar), tar.stat().st_size
    data = index.to_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    assert parse_index(data, size, 3, sha256).keys == index.keys
    for given in ((data, size, 2, sha256), (data, size, 3, sha256[::-1]), (data, 600, 3, sha256)):
        with pytest.raises(ValueError):
            parse_index(*given)


def test_the_index_that_is_taken_while_writing_is_that_of_the_tar(tar, tmp_path):
    """And the tar is the one that tarfile writes."""
    path, members = tmp_path / "y.tar", [*UNEVEN, ("k" * 300 + ".jpg", b"long names too")]
    with open(path, "wb") as file:
        writer = TarWriter(path, file)
        for name, data in members:
            key, _, suffix = name.partition(".")
            writer.add(key, {suffix: data})
        described, index = writer.finish()
    assert index == index_tar(path).to_bytes()
    with tarfile.open(tmp_path / "z.tar", "w", format=tarfile.GNU_FORMAT) as other:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            (tmp_path / "member").write_bytes(data)
            with open(tmp_path / "member", "rb") as source:
                other.addfile(info, source)
    assert path.read_bytes() == (tmp_path / "z.tar").read_bytes()
    assert described.shard.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert described.shard.num_bytes == path.stat().st_size and described.num_classes == 13


@pytest.mark.parametrize("key", ["a.b", ".hidden", "", "line\nbreak", "k" * 2000])
def test_a_key_that_no_reader_would_find_again_is_refused_while_writing(tmp_path, key):
    with open(tmp_path / "y.tar", "wb") as file, pytest.raises(SampleError, match=r"y\.tar"):
        TarWriter(tmp_path / "y.tar", file).add(key, {"jpg": b"x"})


def test_a_set_of_before_loads_and_gives_the_same_batches(uneven, tmp_path):
    folder = Path(shutil.copytree(uneven, tmp_path / "set"))
    old = as_before(folder)
    assert not list(folder.glob("*.index"))
    assert load_manifest(str(folder)).digest == old.digest
    streams = [build_stream("t", config(source), seed=3, rank=0, world_size=1) for source in (uneven, folder)]
    for one, other in zip(*(islice(stream, 12) for stream in streams), strict=True):
        assert one.keys == other.keys and torch.equal(one.images, other.images)


@pytest.mark.parametrize(
    "content", [b"[]", b"{}", b'{"keys": ["a"], "suffixes": ["cls"], "offsets": [[1e99]], "sizes": [[1]]}']
)
def test_an_index_of_before_that_is_damaged_is_refused(content):
    with pytest.raises(ValueError):
        ShardIndex.from_bytes(content, 10_000)


def test_an_index_of_before_holds_the_same_places(tar):
    index, size = index_tar(tar), tar.stat().st_size
    assert ShardIndex.from_bytes(json_index(index), size).to_bytes() == index.to_bytes()


def test_members_that_are_not_wanted_are_not_read_and_near_ones_come_at_once(tmp_path, monkeypatch):
    """Of three samples: near members, one with much between them, and one without the label."""
    far = b"x" * (2 * GAP)
    members = [("a.cls", b"0"), ("a.png", image()), ("a.txt", b"words")]
    members += [("b.cls", b"1"), ("b.txt", far), ("b.png", image(1)), ("c.txt", far), ("c.png", image(2))]
    write_tar(tmp_path / "0.tar", members)
    manifest = load_manifest(str(tmp_path))
    cache = ShardCache(tmp_path / "cache", 2**30)
    reader = SampleReader(manifest, 1, cache, 0.0, ("png", "cls"))
    reads: list[int] = []
    true = os.pread
    monkeypatch.setattr(
        os, "pread", lambda file, size, offset: (reads.append(size), true(file, size, offset))[1]
    )
    found = [reader.read(0, sample) for sample in range(3)]
    assert found == [
        {"cls": b"0", "png": image()},
        {"cls": b"1", "png": image(1)},
        {"png": image(2)},
    ]
    assert len(reads) == 1 + 2 + 1 and sum(reads) < GAP


def test_a_shard_that_was_changed_since_it_was_indexed_is_named(tmp_path):
    tar = write_tar(tmp_path / "0.tar", samples("s", 3))
    cache = ShardCache(tmp_path / "cache", 2**30)
    (shard,) = load_manifest(str(tmp_path), cache=cache).shards
    for path in (tmp_path / "cache").glob("*.index"):
        path.unlink()
    assert load_index(shard, cache).keys == index_tar(tar).keys, "made anew"
    for path in (tmp_path / "cache").glob("*.index"):
        path.write_bytes(b"rubbish")
    assert load_index(shard, cache).keys == index_tar(tar).keys, "made anew in the place of another's"
    for path in (tmp_path / "cache").glob("*.index"):
        path.unlink()
    write_tar(tar, samples("t", 3))
    with pytest.raises(StorageError, match=r"0\.tar: the samples of the shard are others than before"):
        load_index(shard, cache)
