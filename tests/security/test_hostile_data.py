"""An index, tar, manifest or pattern that is a stranger's. More hostile data is in helpers/payloads."""

import json
import tarfile
import tracemalloc

import pytest

from pipeline.data.shards.index import ShardIndex
from pipeline.data.shards.locations import expand
from pipeline.data.shards.manifest import Manifest, parse_manifest
from pipeline.data.shards.table import Place, table
from pipeline.data.shards.tar_index import index_tar
from pipeline.errors import SampleError


@pytest.mark.parametrize("name", ["offsets", "sizes"])
@pytest.mark.parametrize("value", [-2, 101, 2**40, 2**63, 1e300, "x", None, [], {}])
def test_an_index_cannot_point_outside_of_its_shard(name, value):
    plain = {"keys": ["a"], "suffixes": ["cls"], "offsets": [[0]], "sizes": [[1]]}
    assert ShardIndex.from_bytes(json.dumps(plain).encode(), 100).members(0) == {"cls": (0, 1)}
    with pytest.raises(ValueError):
        ShardIndex.from_bytes(json.dumps(plain | {name: [[value]]}).encode(), 100)


@pytest.mark.parametrize("samples", [3, 2**33])
def test_a_manifest_cannot_say_more_samples_than_its_bytes_hold(samples):
    """The order would take memory for each of them."""
    columns = (["train-0.tar"], [samples], [1024], ["1" * 64], ["2" * 64], ["train"])
    stored = Manifest(table((Place("", "", ""),), [0], *columns), ("jpg",), ("a",)).to_json(None)
    with pytest.raises(ValueError, match="fewer bytes than its samples take"):
        parse_manifest(stored, "/x")


def test_a_tar_of_many_kinds_of_members_takes_little_memory(tmp_path):
    """20,000 empty files of 256 kinds, which is 10 MB of tar and would be a table of 5,000,000 places."""
    path = tmp_path / "x.tar"
    with open(path, "wb") as file:
        for number in range(20_000):
            file.write(tarfile.TarInfo(f"{number}.s{number % 256}").tobuf(tarfile.GNU_FORMAT))
        file.write(bytes(10240))
    tracemalloc.start()
    with pytest.raises(SampleError, match="20000 samples with 256 kinds of members"):
        index_tar(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * 2**20


@pytest.mark.parametrize("pattern", ["a" + "{,}" * 1300, "{" * 5000 + ",", "a" + "{x,y}" * 17])
def test_a_pattern_of_many_groups_is_refused(pattern):
    with pytest.raises(SampleError, match="more than 16 groups|too long"):
        expand(pattern)
