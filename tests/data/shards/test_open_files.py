"""Many open shards meet the limit of open files."""

import os
import resource
from dataclasses import replace

import pytest
from shardkit import samples, write_tar

from pipeline.data.make.existing import index_shards
from pipeline.data.shards import cache, indexes, open_files
from pipeline.data.shards.cache import ShardCache
from pipeline.data.shards.find import load_manifest
from pipeline.data.shards.open_files import MOST, SPARE, allow_open_files
from pipeline.data.shards.reader import SampleReader
from pipeline.data.shards.table import Place


@pytest.fixture
def limited():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (SPARE + 100, before[1]))
    yield lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_limit_of_open_files_is_raised_where_many_shards_are_open(limited):
    assert allow_open_files(100) == 100 and limited() == SPARE + 100
    assert allow_open_files(101) == min(limited(), MOST) - SPARE and limited() > SPARE + 100
    allow_open_files(10**9)
    assert limited() == MOST or limited() == resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def test_a_reader_keeps_within_what_the_system_allows(tmp_path, monkeypatch):
    """Of 40 remote shards in use at once, where it may have 24 files open. Indexes are mapped from the cache,
    which keeps a file of each."""
    tars = [str(write_tar(tmp_path / f"{n:02d}.tar", samples(f"s{n}", 1))) for n in range(40)]
    index_shards(tars, tmp_path, classes=["a", "b", "c"])
    manifest = load_manifest(str(tmp_path))
    far = replace(manifest.shards, places=(Place("http://host", "http://host", ".index"),))

    def local(url: str) -> bytes:
        return (tmp_path / url.rpartition("/")[2]).read_bytes()

    monkeypatch.setattr(cache, "download", lambda url, part, *given: part.write_bytes(local(url)))
    monkeypatch.setattr(indexes, "read_bytes", lambda url, *given: local(url))
    monkeypatch.setattr(open_files, "SPARE", before := open_now() + 4)
    monkeypatch.setattr(resource, "setrlimit", lambda *given: pytest.fail("the limit is the highest"))
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (before + 24, before + 24))
    reader = SampleReader(replace(manifest, shards=far), 40, ShardCache(tmp_path / "cache", 10**9), 60.0)
    reader.prefetch(range(40))
    most = 0
    for number in [*range(40), *range(40)]:
        assert set(reader.read(number, 0)) == {"png", "cls"}
        most = max(most, open_now())
    assert before < most <= before + 24


def open_now() -> int:
    return len(os.listdir("/proc/self/fd"))
