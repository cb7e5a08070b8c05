"""Shards over http: the same batches as from the disk, in a bounded cache, through a server that fails now
and then."""

import gc
import http.server
import os
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import torch
from cache_soak import soak
from shardkit import config, samples, write_tar

from pipeline.data.make.existing import index_existing, index_shards
from pipeline.data.shards import cache, fetcher, patience
from pipeline.data.shards.find import load_manifest
from pipeline.data.shards.locks import release
from pipeline.data.stream import build_eval_loader, build_stream
from pipeline.errors import ConfigError, SampleError, StorageError


class Handler(http.server.SimpleHTTPRequestHandler):
    """Fails as `faults` says, request after request: a status, `short` for a body that breaks off, `other`
    for other bytes."""

    faults: list[object] = []
    of = ".tar"
    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path.rpartition("/")[2])
        fault = self.faults.pop(0) if self.faults and self.path.endswith(self.of) else None
        if isinstance(fault, int):
            self.send_error(fault)
        elif fault == "short":
            data = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[:700])
            self.close_connection = True
        elif fault == "other":
            data = bytes(Path(self.translate_path(self.path)).stat().st_size)
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        else:
            super().do_GET()

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def serve(monkeypatch) -> Iterator[Callable[[Path], str]]:
    """Gives a folder a URL."""
    monkeypatch.setattr(patience, "PAUSE", 0.01)
    monkeypatch.setattr(patience, "LONGEST_PAUSE", 0.05)
    monkeypatch.setattr(patience, "PATIENCE", 0.3)
    monkeypatch.setattr(fetcher, "RETRY", 0.1)
    Handler.faults, Handler.asked = [], []
    servers = []

    def start(folder: Path) -> str:
        servers.append(
            http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        )
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def server(uneven, serve) -> str:
    return serve(uneven)


def batches(source, workers: int = 0, count: int = 12, **options):
    stream = build_stream("t", config(source, workers=workers, **options), seed=5, rank=0, world_size=1)
    return list(islice(iter(stream), count))


def cached() -> list[Path]:
    return list(cache.cache_folder().glob("*.tar"))


def join_prefetching() -> None:
    """Ends that of all streams: what is being fetched comes, and no lease is left."""
    for found in gc.get_objects():
        if type(found) is fetcher.Fetcher:
            found.close()
    for thread in threading.enumerate():
        if thread.name == "shards":
            thread.join(timeout=30)
            assert not thread.is_alive()


@pytest.mark.parametrize("workers", [0, 2])
def test_remote_batches_are_those_of_the_disk(server, uneven, workers):
    assert load_manifest(server).digest == load_manifest(str(uneven)).digest
    for near, far in zip(batches(uneven), batches(server, workers), strict=True):
        assert near.keys == far.keys and torch.equal(near.images, far.images)


def test_a_pattern_of_urls_takes_a_part_and_wrong_ones_are_named(server):
    assert load_manifest(server + "/part-{00001..00003}.tar").num_samples == 18
    with pytest.raises(SampleError, match="does not list .*part-00005.tar"):
        load_manifest(server + "/part-{00001..00007}.tar")


LARGEST = 12 * 4096
"""Bytes, at least, of the largest of the uneven shards."""


def test_the_cache_keeps_its_limit_but_for_what_is_open(serve, tmp_path):
    """Three shards of shuffle_shards=1 are open, one comes, and the fetcher, a thread of its own, may still
    have those of the step before."""
    shards, most = 15, 7
    tars = [write_tar(tmp_path / f"{n:02d}.tar", samples(f"s{n}", 4)) for n in range(shards)]
    index_shards([str(tar) for tar in tars], tmp_path, classes=["a", "b", "c"])
    url, size = serve(tmp_path), tars[0].stat().st_size
    small = dict(shuffle_shards=1, fetch_ahead=0, cache_gib=1 / 2**30)
    loader = build_eval_loader("t", config(url, eval_batch_size=1, **small), rank=0, world_size=1)
    for _ in loader:
        assert len(cached()) <= most
    del loader
    join_prefetching()
    batches(url, count=9, batch_size=4, **small | {"cache_gib": 2 * size / 2**30})
    join_prefetching()
    assert not list(cache.cache_folder().rglob("*.part"))
    assert 0 < len(cached()) <= most, "what nobody reads any more gave way"


@pytest.mark.parametrize("cache_gib", [1 / 2**30, 2 * LARGEST / 2**30])
def test_streams_that_share_a_cache_too_small_for_them_lose_nothing(server, cache_gib):
    def read(number: int) -> Counter[str]:
        made = config(server, shuffle_shards=1, batch_size=4, cache_gib=cache_gib, max_bad_samples=0)
        stream = build_stream("t", made, seed=number, rank=0, world_size=1)
        return Counter(key for batch in islice(stream, 21) for key in batch.keys)

    with ThreadPoolExecutor(4) as pool:
        for keys in pool.map(read, range(4)):
            assert len(keys) == 28 and set(keys.values()) == {3}
    join_prefetching()


def test_a_missing_shard_is_named_before_an_index_is_made(server, tmp_path):
    with pytest.raises(SampleError, match="part-00005.tar is missing; name the shards that are there"):
        index_existing(f"{server}/part-{{00004..00005}}.tar", str(tmp_path), workers=1)


def test_two_tasks_on_one_set_fetch_each_shard_once(server):
    streams = [iter(build_stream("t", config(server), seed=seed, rank=0, world_size=1)) for seed in (0, 1)]
    for _ in range(20):
        for stream in streams:
            next(stream)
    join_prefetching()
    assert max(Counter(name for name in Handler.asked if name.endswith(".tar")).values()) == 1


def test_what_a_killed_process_left_half_fetched_is_removed(server):
    batches(server, count=1)
    join_prefetching()
    whole = cached()[0]
    whole.unlink()
    fetching = whole.parent / ".fetching"
    lock = fetching / f"{whole.name}.lock"
    with open(lock, "w") as reserved:
        reserved.truncate(2**40)
    left = [lock, fetching / f"{whole.name}.part", fetching / f".{whole.name}.part.abc.part"]
    for path in left[1:]:
        path.write_bytes(b"half")
    batches(server)
    join_prefetching()
    assert whole.exists() and not any(path.exists() for path in left)
    assert len(cached()) == 5, "the room that it had reserved is free again"


def test_processes_that_share_a_cache_lose_nothing_while_others_are_killed(tmp_path):
    """Two counts of what is read; benchmarks/cache_soak.py at length."""
    counts = soak(tmp_path, processes=4, reads=320, kills=4, shards=40)
    assert counts["reads"] == 320 and counts["lost"] == 0 and counts["left files"] == 0
    assert counts["largest bytes"] <= counts["limit bytes"] + counts["bytes that leases may hold"]


def test_an_open_shard_has_a_lease(server, uneven):
    """It stays, and goes when it is closed and the room is needed."""
    shards = load_manifest(server).shards
    largest = max(shard.num_bytes for shard in shards)
    store = cache.ShardCache(cache.cache_folder(), largest)
    files = [store.open(shards[number], 0.0) for number in (0, 1, 2)]
    assert len(cached()) == 3, "all are in use"
    assert store.prefetch(shards[3]) is None and len(cached()) == 3, "there is no room"
    for number, file in enumerate(files):
        size = os.fstat(file).st_size
        assert os.pread(file, size, 0) == (uneven / shards[number].name).read_bytes()
        release(file)
    release(store.open(shards[3], 0.0))
    assert sum(path.stat().st_size for path in cached()) <= largest
    assert cached() and not list(cache.cache_folder().rglob("*.lock"))


def test_room_that_others_fetch_into_is_counted(server):
    """Five at once, of which two fit."""
    shards = load_manifest(server).shards
    sizes = sorted(shard.num_bytes for shard in shards)
    store = cache.ShardCache(cache.cache_folder(), sizes[-1] + sizes[-2])
    with ThreadPoolExecutor(5) as pool:
        for file in list(pool.map(store.prefetch, shards)):
            if file is not None:
                release(file)
    assert 0 < sum(path.stat().st_size for path in cached()) <= sizes[-1] + sizes[-2]


def test_the_folder_is_the_config_s_then_the_environment_s_then_one_of_the_user(monkeypatch, tmp_path):
    assert cache.cache_folder("x") == Path("x")
    assert cache.cache_folder() == Path(os.environ["DTEM_CACHE"])
    monkeypatch.delenv("DTEM_CACHE")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    own = cache.cache_folder()
    assert own == tmp_path / f"dtem-{os.getuid()}" and own.stat().st_mode & 0o777 == 0o700
    own.chmod(0o777)
    with pytest.raises(ConfigError, match=r"is not a folder that you alone can write to.*data.cache_dir"):
        cache.cache_folder()
    own.rmdir()
    own.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(ConfigError, match="is not a folder"):
        cache.cache_folder()


def test_a_cache_too_small_for_the_lanes_is_told_before_training(server, caplog):
    build_stream("t", config(server, lanes=5, cache_gib=1.0), seed=0, rank=0, world_size=1)
    assert "lanes" not in caplog.text
    build_stream("t", config(server, lanes=5, cache_gib=LARGEST / 2**30), seed=0, rank=0, world_size=1)
    assert "tasks.t.data: its 5 lanes" in caplog.text and "Give data.cache_gib=1" in caplog.text


def test_cached_shards_are_not_asked_for_again(server):
    source = server + "/part-{00001..00002}.tar"
    batches(source)
    Handler.asked.clear()
    batches(source)
    assert not [name for name in Handler.asked if name.endswith(".tar")]


@pytest.mark.parametrize("fault", [500, "short", "other"])
def test_a_failing_transfer_is_tried_again(server, uneven, fault):
    Handler.faults = [fault, None, fault]
    for near, far in zip(batches(uneven), batches(server), strict=True):
        assert near.keys == far.keys and torch.equal(near.images, far.images)


@pytest.mark.parametrize("fault", [503, 429, "short"])
def test_an_outage_that_ends_loses_no_sample(server, uneven, fault):
    Handler.faults = [fault] * 40
    for near, far in zip(batches(uneven), batches(server, max_bad_samples=0), strict=True):
        assert near.keys == far.keys and torch.equal(near.images, far.images)
    assert not Handler.faults


@pytest.mark.parametrize("fault", [503, "other"])
def test_an_index_that_comes_wrong_is_asked_for_again_and_makes_no_sample_bad(
    server, uneven, monkeypatch, fault
):
    monkeypatch.setattr(Handler, "of", ".tar.index")
    Handler.faults = [fault] * 12
    stream = build_stream("t", config(server, max_bad_samples=0), seed=5, rank=0, world_size=1)
    for near, far in zip(batches(uneven), islice(stream, 12), strict=True):
        assert near.keys == far.keys and torch.equal(near.images, far.images)
    assert not Handler.faults and stream.bad_samples == 0
    join_prefetching()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("fault, reason", [(503, "503"), ("other", "another sha256 than the manifest says")])
def test_an_outage_that_does_not_end_stops_the_run_and_is_no_bad_sample(
    server, caplog, fault, reason, workers
):
    Handler.faults = [fault] * 100_000
    stream = build_stream("t", config(server, workers=workers, max_wait=1.0), seed=5, rank=0, world_size=1)
    said = rf"part-0000\d.tar: .*{reason}.* attempts in .*see that the storage answers"
    late = (
        r"|no batch came" if workers else ""
    )  # on a busy machine the wait may end before the worker has given up
    with pytest.raises(StorageError, match=said + late):
        next(iter(stream))
    assert stream.bad_samples == 0
    if not workers:
        assert [
            record
            for record in caplog.records
            if "asking on until" in record.getMessage() and ".tar" in record.getMessage()
        ]
    Handler.faults = []
    join_prefetching()


def test_what_is_refused_or_gone_stops_the_run_at_once(server):
    for status, message in {404: "is missing; restore it", 403: "access is denied"}.items():
        Handler.faults = [status] * 100_000
        with pytest.raises(StorageError, match=message):
            batches(server, max_wait=1000)
        Handler.faults = []
        join_prefetching()


def test_a_server_that_is_down_is_not_one_without_a_manifest(server):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(StorageError, match="see that the storage answers"):
        load_manifest(f"http://127.0.0.1:{port}/set")


def test_a_shard_that_is_gone_or_of_another_size_is_found_before_training(server, uneven, tmp_path):
    for name in (*uneven.glob("*.json"), *uneven.glob("*.index")):
        (tmp_path / name.name).write_bytes(name.read_bytes())
    plain = (tmp_path / "manifest.json").read_text().replace('"root": null', f'"root": "{server}/nowhere"')
    (tmp_path / "manifest.json").write_text(plain)
    with pytest.raises(SampleError, match="nowhere/part-00000.tar is missing"):
        build_stream("t", config(tmp_path), seed=0, rank=0, world_size=1)


def test_without_a_manifest_the_command_that_makes_one_is_named_and_works(server, uneven, tmp_path):
    (uneven / "bare").mkdir()
    for path in uneven.glob("*.tar"):
        (uneven / "bare" / path.name).hardlink_to(path)
    (uneven / "bare" / "classes.json").write_text('["a", "b", "c"]')
    with pytest.raises(SampleError, match=r"has no manifest.json.*dtem shards make index"):
        load_manifest(f"{server}/bare")
    tars = [f"{server}/bare/part-0000{n}.tar" for n in range(5)]
    index_shards(tars, tmp_path / "made", root=f"{server}/bare")
    assert load_manifest(str(tmp_path / "made")).digest == load_manifest(str(uneven)).digest
    assert len(batches(tmp_path / "made", count=2)) == 2
