"""What a start costs does not grow with the set: requests, memory, and indexing where there is no
manifest."""

import gc
import hashlib
import json
import os
import tracemalloc
from collections import Counter
from dataclasses import replace
from typing import Any

import fsspec
import numpy as np
import pytest
from ranks import together
from shardkit import config, samples, write_tar
from standin import standin_config

from pipeline.data.layouts.splits import split_of
from pipeline.data.make.existing import index_shards
from pipeline.data.shards import describe, storage, stored
from pipeline.data.shards.cache import ShardCache
from pipeline.data.shards.columns import from_columns, to_columns
from pipeline.data.shards.find import load_manifest
from pipeline.data.shards.manifest import MANIFEST, Manifest, parse_manifest
from pipeline.data.shards.present import SAMPLED
from pipeline.data.shards.table import Place, Shard, ShardTable, table
from pipeline.data.stream import build_eval_loader, build_stream
from pipeline.errors import ConfigError, SampleError, StorageError
from pipeline.train.same_shards import check_same_run, check_same_shards


def made(num_shards: int) -> Manifest:
    """A manifest of shards that are nowhere."""
    names = [f"train-{number:06d}.tar" for number in range(num_shards)]
    hashes = [f"{number:064x}" for number in range(1, num_shards + 1)]
    counts, sizes = [1000] * num_shards, [100 * 2**20 + 512 * number for number in range(num_shards)]
    place = (Place("http://host/set", "http://host/set", ".index"),)
    columns = (names, counts, sizes, hashes, hashes[::-1], ["train"] * num_shards)
    return Manifest(table(place, [0] * num_shards, *columns), ("cls", "jpg"), ("a", "b"))


class Counting(fsspec.AbstractFileSystem):
    """A server that has the manifest, says the sizes of the shards, and counts what it is asked."""

    protocol = "http"
    cachable = False
    manifest: Manifest
    asked: Counter[str] = Counter()

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        Counting.asked["info"] += 1
        name = path.rpartition("/")[2]
        if name == MANIFEST:
            return {"size": len(Counting.manifest.to_json(None))}
        number = int(name.split("-")[1].split(".")[0])
        return {"size": int(Counting.manifest.shards.num_bytes[number])}

    def cat_file(self, path: str, start: Any = None, end: Any = None, **options: Any) -> bytes:
        Counting.asked["cat"] += 1
        assert path.endswith(MANIFEST)
        return Counting.manifest.to_json(None)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(storage, "_filesystem", lambda location: Counting())
    return "http://host/set"


def requests(source: str, num_shards: int, rank: int, start: Any) -> int:
    Counting.manifest, Counting.asked = made(num_shards), Counter()
    assert start("t", config(source), rank=rank, world_size=64).num_samples == 1000 * num_shards
    return Counting.asked.total()


@pytest.mark.parametrize("rank", [0, 1, 63])
def test_requests_of_a_rank_do_not_grow_with_the_shards(server, rank):
    def stream(*given, **options):
        return build_stream(*given, seed=0, **options)

    def loader(*given, **options):
        return build_eval_loader(*given, split="train", **options)

    for start in (stream, loader):
        few, many = (requests(server, num, rank, start) for num in (100, 1000))
        assert few == many == (2 + SAMPLED if rank == 0 else 2)
        assert requests(server, 10, rank, start) == (2 + 10 if rank == 0 else 2)


def test_a_manifest_takes_columns_and_not_an_object_for_each_shard():
    number = 20_000
    data = made(number).to_json(None)
    parse_manifest(data, "http://host/set")
    gc.collect()
    before = len(gc.get_objects())
    tracemalloc.start()
    manifest = parse_manifest(data, "http://host/set")
    gc.collect()
    now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert manifest.num_samples == 1000 * number and manifest.digest == made(number).digest
    assert len(gc.get_objects()) - before < 1000
    assert now < number * 160 and peak < number * 1024, "100 MiB for 100,000 shards"


def test_ranks_that_read_different_manifests_are_told_so():
    """As where a host has an older copy of the folder."""
    one, other = (made(number).fingerprint for number in (10, 11))

    def told(held: list[int]) -> list[str]:
        def ask(rank: int, ranks: Any) -> str:
            try:
                check_same_shards(ranks, {"tasks.t.data.train": one, "tasks.t.data.val": held[rank]})
            except SampleError as err:
                return str(err)
            return ""

        return together(len(held), ask)

    assert told([one] * 3) == [""] * 3
    for text in told([one, one, other]):
        assert "tasks.t.data.val: the manifest of rank 2 is not that of rank 0" in text


def test_ranks_of_two_launches_are_no_run():
    """Two launches that have met at one place, with a config each."""
    configs = [standin_config("a"), standin_config("a"), standin_config("b")]

    def ask(rank: int, ranks: Any) -> str:
        try:
            check_same_run(ranks, configs[rank])
        except ConfigError as err:
            return str(err)
        return ""

    assert together(2, ask) == [""] * 2
    assert all("rank 2 has another config than rank 0" in text for text in together(3, ask))


def test_the_digest_is_computed_once(monkeypatch):
    manifest = made(10)
    first = manifest.digest
    monkeypatch.setattr(type(manifest.shards), "identities", lambda self: pytest.fail("hashed anew"))
    assert manifest.digest == first


def test_the_digest_of_a_set_is_the_one_of_before():
    """Of the text that json.dumps makes of the whole, names with other letters and splits included."""
    names = ["a-train-0.tar", "b-val-1.tar", "größe-2.tar", 'quote"-3.tar', "x-4.tar"]
    splits = ["train", "train", "", "test", "val"]
    shards = [
        Shard(name, 1 + n, 512 * n + 1, f"{n + 1:064x}", f"{n + 7:064x}", f"d/{name}", split=split)
        for n, (name, split) in enumerate(zip(names, splits, strict=True))
    ]
    manifest = Manifest(ShardTable.of(shards), ("cls", "jpg"), ("ä", "b"), ("m",))
    parts = [
        [
            s.name,
            s.num_samples,
            s.num_bytes,
            s.index_sha256,
            *([s.split] if s.split != split_of(s.name) else []),
        ]
        for s in shards
    ]
    text = json.dumps([parts, manifest.schema, manifest.classes, manifest.mask_classes])
    assert manifest.digest == hashlib.sha256(text.encode()).hexdigest()
    assert list(manifest.shards) == shards
    assert list(manifest.shards.take([3, 1])) == [shards[3], shards[1]]
    assert replace(manifest, shards=manifest.shards[:2]).num_samples == 3


@pytest.fixture
def many(tmp_path):
    """More shards than are looked at before a run."""
    tars = [str(write_tar(tmp_path / f"part-{n:02d}.tar", samples(f"s{n}", 1))) for n in range(SAMPLED + 8)]
    index_shards(tars, tmp_path, classes=["a", "b", "c"])
    return tmp_path


def test_a_wrong_size_that_no_rank_looked_at_is_found_when_the_shard_is_opened(many):
    looked_at = set(np.linspace(0, SAMPLED + 7, SAMPLED).round().astype(int).tolist())
    other = next(number for number in range(SAMPLED + 8) if number not in looked_at)
    os.truncate(many / f"part-{other:02d}.tar", 512)
    loader = build_eval_loader("t", config(many, max_wait=0.3), rank=0, world_size=1)
    with pytest.raises(StorageError, match=rf"part-{other:02d}.tar: 512 bytes are there"):
        list(loader)


def test_without_a_manifest_a_set_is_indexed_once_for_all_ranks_and_runs(many, monkeypatch):
    for path in (*many.glob("*.index"), many / MANIFEST):
        path.unlink()
    calls: Counter[str] = Counter()
    true = describe.index_tar
    monkeypatch.setattr(describe, "index_tar", lambda tar: (calls.update([str(tar)]), true(tar))[1])
    for rank in range(3):
        build_stream("t", config(many), seed=0, rank=rank, world_size=3)
    assert len(calls) == SAMPLED + 8 and set(calls.values()) == {1}
    os.utime(many / "part-03.tar")
    assert load_manifest(str(many)).num_samples == SAMPLED + 8
    assert set(calls.values()) == {2}, "a file that may have changed is looked at again"


def test_a_rank_reads_a_manifest_once_and_a_machine_fetches_it_once(server, monkeypatch):
    """For a stream, a loader, and the check that they share no shard; the storage says when it changes."""
    true, tag = Counting.info, ["a"]
    monkeypatch.setattr(
        Counting, "info", lambda self, path, **given: true(self, path, **given) | {"ETag": tag[0]}
    )
    Counting.manifest, Counting.asked = made(40), Counter()
    options: dict[str, Any] = dict(rank=1, world_size=2)
    pattern = "http://host/set/train-{}.tar"
    given = config([pattern.format("{000000..000019}")], val=[pattern.format("{000020..000039}")])

    def start() -> int:
        Counting.asked.clear()
        stream = build_stream("t", given, seed=0, **options)
        build_eval_loader("t", given, **options)
        assert Counting.asked["info"] == 3
        return Counting.asked["cat"] + 1000 * stream.num_samples

    assert start() == 1 + 1000 * 20_000
    assert start() == 1000 * 20_000
    stored._read_once.cache_clear()
    whole = load_manifest("http://host/set", checked=False)
    assert start() == 1000 * 20_000, "another rank of the machine"
    assert whole.digest == made(40).digest and list(whole.shards) == list(made(40).shards)
    assert (whole.schema, whole.classes) == (made(40).schema, made(40).classes)
    Counting.manifest, tag[0] = made(41), "b"
    assert load_manifest("http://host/set", checked=False).num_samples == 41_000


def test_ranks_of_a_machine_share_the_columns_in_memory(tmp_path):
    """One of them reads the JSON; what another one takes does not grow as that does."""
    number = 20_000
    data, cache = made(number).to_json(None), ShardCache(tmp_path / "cache", 10**9)
    digest = cache.kept("m", lambda: to_columns(parse_manifest(data, "http://host/set")), from_columns).digest
    tracemalloc.start()
    manifest = cache.kept("m", lambda: pytest.fail("made again"), from_columns)
    now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert manifest.digest == digest and manifest.num_samples == 1000 * number
    assert now < number * 2 and peak < number * 20
    stored_at = tmp_path / "cache" / "m"
    damaged = bytearray(stored_at.read_bytes())
    damaged[-100] ^= 1
    stored_at.write_bytes(damaged)
    with pytest.raises(ValueError, match="damaged"):
        from_columns(bytes(damaged))
