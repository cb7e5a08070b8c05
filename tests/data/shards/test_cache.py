"""Laws of the cache of shards: what is in sight stays and is fetched once, room is promised once, and what is
wrong with the folder is said so."""

import errno
import fcntl
import http.server
import multiprocessing
import os
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.data.lanes import Share
from pipeline.data.look_ahead import LookAhead
from pipeline.data.make.write import jobs_of, write_shards
from pipeline.data.order import SampleOrder
from pipeline.data.shards import cache, fetcher, locks, room, storage
from pipeline.data.shards.cache import ShardCache
from pipeline.data.shards.find import load_manifest
from pipeline.data.shards.locks import locked, release
from pipeline.data.shards.manifest import Manifest
from pipeline.data.shards.reader import SampleReader
from pipeline.data.shards.table import Shard
from pipeline.errors import OutageError, StorageError

FORK = multiprocessing.get_context("fork")
SHARDS, EACH = 60, 8


def noise(numbers: Sequence[int]) -> Iterator[tuple[str, dict[str, bytes]]]:
    for number in numbers:
        yield f"{number:06d}", {"jpg": random.Random(number).randbytes(1500)}


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[tuple[Manifest, Counter[str]]]:
    """A remote set, and how often each file was asked for."""
    folder, asked = tmp_path_factory.mktemp("set"), Counter[str]()
    write_shards(jobs_of("train", range(SHARDS * EACH), noise, EACH), folder / "set")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked[self.path.rpartition("/")[2]] += 1
            super().do_GET()

        def log_message(self, *args: object) -> None: ...

    handler = partial(Handler, directory=str(folder / "set"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield load_manifest(f"http://127.0.0.1:{server.server_port}", checked=False), asked
    server.shutdown()
    server.server_close()


@pytest.fixture
def shard() -> Shard:
    return Shard("0.tar", 1, 10_000, "", f"{1:064x}", "http://127.0.0.1:1/0.tar")


@pytest.fixture
def downloads(monkeypatch) -> list[str]:
    """The URLs of what is downloaded, which is as many zeros as the shard has bytes."""
    urls: list[str] = []

    def download(url: str, part: Path, num_bytes: int, sha256: str, patience: float) -> None:
        urls.append(url)
        part.write_bytes(bytes(num_bytes))

    monkeypatch.setattr(cache, "download", download)
    return urls


def of_size(number: int, num_bytes: int = 10_000) -> Shard:
    return Shard(f"{number}.tar", 1, num_bytes, "", f"{number + 1:064x}", f"http://127.0.0.1:1/{number}.tar")


def bytes_in(folder: Path, pattern: str) -> int:
    """Of files that may be deleted meanwhile."""
    total = 0
    for path in folder.glob(pattern):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


@pytest.mark.parametrize("lanes, shuffle, ahead", [(1, 2, 12), (4, 4, 8), (8, 8, 4)])
@pytest.mark.parametrize("room_for", [1.25, 0.3])
def test_a_shard_is_downloaded_once_for_as_long_as_it_is_in_sight(
    served, tmp_path, monkeypatch, lanes, shuffle, ahead, room_for
):
    """With the budget of docs/scale.md, what is in sight and a quarter, and with one far below it."""
    manifest, asked = served
    monkeypatch.setattr(fetcher, "RETRY", 0.02)
    order = SampleOrder(manifest.shards.num_samples.tolist(), 0, shuffle, lanes)
    shares = [Share(start, 4, range(4)) for start in range(0, order.num_samples, 4)]
    seen = LookAhead(order, ahead * EACH, wraps=False)
    kept = max(len(seen.in_sight()) for share in shares if seen(share) is not None)
    budget = int(room_for * kept * manifest.shards.num_bytes.max()) + SHARDS * 2000
    reader = SampleReader(manifest, order.open_shards(1), ShardCache(tmp_path / "cache", budget), 20.0)
    asked.clear()
    look_ahead, most = LookAhead(order, ahead * EACH, wraps=False), 0
    for share in shares:
        if look_ahead(share):
            reader.prefetch(look_ahead.in_sight())
        for position in order.lanes.positions(share):
            at = order[position]
            reader.read(at.shard, at.sample)
        most = max(most, bytes_in(tmp_path / "cache", "*.tar"))
    tars = sum(count for name, count in asked.items() if name.endswith(".tar"))
    assert tars <= 1.05 * SHARDS, tars / SHARDS
    open_at_once = (2 * order.open_shards(1) + 1) * manifest.shards.num_bytes.max()
    assert most <= budget + open_at_once, "the limit, but for what is in use"


def test_what_cannot_fit_deletes_nothing(downloads, tmp_path):
    store = ShardCache(tmp_path / "cache", 50_000)
    for number in range(3):
        release(store.open(of_size(number), 0.0))
    assert store.prefetch(of_size(9, 60_000)) is None
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 3 and len(downloads) == 3


def test_room_on_the_disk_is_promised_once(downloads, tmp_path, monkeypatch):
    """Of two that are fetched at once, while the disk has room for one and a half."""
    folder = tmp_path / "cache"
    store = ShardCache(folder, 10**9)
    for number in range(2):
        release(store.open(of_size(number), 0.0))
    whole = 35_000

    def usage(path: Any) -> SimpleNamespace:
        return SimpleNamespace(free=whole - bytes_in(folder, "*.tar") - bytes_in(folder, ".fetching/*.part"))

    monkeypatch.setattr(shutil, "disk_usage", usage)
    at_once, true = threading.Barrier(2), cache.download

    def slow(*given: Any) -> None:
        at_once.wait(30)
        assert usage(folder).free >= 20_000 - 10_000, "both have their room"
        true(*given)

    monkeypatch.setattr(cache, "download", slow)
    threads = [
        # with patience: who makes room holds the lock of each fetch for an instant
        threading.Thread(target=lambda number=number: release(store.open(of_size(number), 30.0)))
        for number in (2, 3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(list(folder.glob("*.tar"))) == 3 and usage(folder).free >= 0


def test_a_disk_that_is_full_after_all_loses_old_files_and_not_the_run(downloads, tmp_path, monkeypatch):
    """Somebody else has filled it since room was made."""
    store = ShardCache(tmp_path / "cache", 10**9)
    release(store.open(of_size(0), 0.0))
    free = [10**9, 0, 0, 10**9]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free.pop(0)))
    true, failures = cache.download, [1]

    def full(*given: Any) -> None:
        if failures:
            failures.pop()
            raise storage.DiskFullError("no room")
        true(*given)

    monkeypatch.setattr(cache, "download", full)
    release(store.open(of_size(1), 0.0))
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 1, "the old file gave way"


def test_the_folder_is_listed_only_where_something_has_to_go(downloads, tmp_path, monkeypatch):
    """So what a download costs does not grow with what is kept: 4,000 leased shards of another process."""
    looks = []
    true = room.Room._files
    monkeypatch.setattr(room.Room, "_files", lambda self: (looks.append(1), true(self))[1])
    store = ShardCache(tmp_path / "cache", 100 * 10_000)
    for number in range(140):
        release(store.open(of_size(number), 0.0))
    assert len(looks) <= 1 + 40 / 5, "five files are freed at a time"
    assert bytes_in(tmp_path / "cache", "*.tar") <= 100 * 10_000
    held = [store.open(of_size(number), 0.0) for number in range(200, 300)]
    looks.clear()
    for number in range(300, 400):
        assert store.prefetch(of_size(number)) is None
    assert len(looks) <= 10, "a folder that is full is not looked at for each of them"
    for file in held:
        release(file)


def test_files_are_deleted_on_a_network_disk_too(downloads, tmp_path, monkeypatch):
    """NFS makes flock of byte-range locks: an exclusive one needs a descriptor that may write."""

    def flock(file: int, operation: int) -> None:
        mode = fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE
        if operation & fcntl.LOCK_EX and mode == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        true(file, operation)

    true = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", flock)
    store = ShardCache(tmp_path / "cache", 30_000)
    for number in range(10):
        release(store.open(of_size(number), 0.0))
    assert len(list((tmp_path / "cache").glob("*.tar"))) <= 3


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EMFILE])
def test_an_error_of_the_folder_names_it_and_not_the_storage(downloads, shard, tmp_path, monkeypatch, number):
    def flock(*given: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    way = "data.lanes" if number == errno.EMFILE else "data.cache_dir"
    with pytest.raises(StorageError, match=rf"the cache .*/cache .*{os.strerror(number)}; .*{way}") as found:
        ShardCache(tmp_path / "cache", 10**9).open(shard, 0.0)
    assert not isinstance(found.value, OutageError), "asking again does not help"


def test_a_folder_that_cannot_be_made_is_named(downloads, shard, tmp_path):
    (tmp_path / "file").write_text("x")
    store = ShardCache(tmp_path / "file", 10**9)
    for use in (lambda: store.open(shard, 0.0), lambda: store.kept("a.index", lambda: b"x", bytes)):
        with pytest.raises(StorageError, match=r"the cache .*/file of shards cannot be used.*data.cache_dir"):
            use()


def test_a_lock_ends_though_a_forked_process_still_has_its_file(tmp_path):
    begun, go_on = FORK.Event(), FORK.Event()

    def child() -> None:
        begun.set()
        go_on.wait(60)

    with locked(tmp_path / "a.lock", 0.0):
        process = FORK.Process(target=child)
        process.start()
        begun.wait(60)
        held = os.open(tmp_path / "a.lock", os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    go_on.set()
    process.join(60)
    os.close(held)


def test_links_and_files_of_others_are_not_taken(downloads, tmp_path, monkeypatch):
    folder, victim = tmp_path / "cache", tmp_path / "victim"
    victim.write_text("precious")
    store = ShardCache(folder, 10**9)
    shard = of_size(0)
    release(store.open(shard, 0.0))
    (path,) = folder.glob("*.tar")
    path.unlink()
    path.symlink_to(victim)
    (folder / "a.index").symlink_to(victim)
    (folder / ".fetching" / "a.index.part").symlink_to(victim)
    assert store.kept("a.index", lambda: b"own", bytes) == b"own"
    release(store.open(shard, 0.0))
    assert victim.read_text() == "precious" and not path.is_symlink()
    assert (folder / "a.index").read_bytes() == b"own" and len(downloads) == 2
    # the file of another user, in the folder of a third
    owner = os.stat(folder).st_uid
    true = os.fstat

    def another(file: int) -> SimpleNamespace:
        return SimpleNamespace(st_uid=owner + 7, st_size=true(file).st_size)

    monkeypatch.setattr(
        os, "fstat", lambda file: SimpleNamespace(st_uid=owner + 7, st_size=true(file).st_size)
    )
    assert locks.leased(path, shard.num_bytes) is None


def test_a_small_file_that_cannot_be_stored_is_given_from_memory(tmp_path, monkeypatch):
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = ShardCache(tmp_path / "cache", 10**9)
    monkeypatch.setattr(os, "fsync", full)
    assert store.kept("a.index", lambda: b"12345", bytes) == b"12345"
    monkeypatch.undo()
    assert not [path for path in (tmp_path / "cache").rglob("a.index*")]
    assert store.kept("a.index", lambda: b"12345", bytes) == b"12345"
    assert store.kept("a.index", lambda: pytest.fail("made again"), bytes) == b"12345"


@pytest.mark.parametrize("damage", [b"", b'{"format": 2, "ro', b"null", b"[]"])
def test_a_damaged_manifest_in_the_cache_is_made_anew(tmp_path, damage):
    write_shards(jobs_of("train", range(20), noise, 5), tmp_path / "set")
    (tmp_path / "set" / "manifest.json").unlink()
    store = ShardCache(tmp_path / "cache", 10**9)
    whole = load_manifest(str(tmp_path / "set"), cache=store)
    (kept,) = (tmp_path / "cache").glob("*.manifest")
    kept.write_bytes(damage)
    assert load_manifest(str(tmp_path / "set"), cache=store).digest == whole.digest
    assert kept.read_bytes() != damage


def test_who_waits_for_another_s_download_waits_no_longer_than_its_patience(downloads, shard, tmp_path):
    store = ShardCache(tmp_path / "cache", 10**9)
    store._room.prepare()
    (name,) = [store._path(shard).name]
    with locked(store._room.lock_of(name), 0.0):
        start = time.monotonic()
        with pytest.raises(StorageError, match="0.tar: another process of this machine has been at it"):
            store.open(shard, 0.2)
        assert time.monotonic() - start >= 0.2
    release(store.open(shard, 0.0))


def test_what_is_fetched_ahead_tries_once(tmp_path, shard, monkeypatch):
    """So that the reader that needs it has its whole patience, and gives the storage's own error."""
    asked: list[float] = []

    def download(url: str, part: Path, num_bytes: int, sha256: str, patience: float) -> None:
        asked.append(patience)
        raise OutageError("503")

    monkeypatch.setattr(cache, "download", download)
    store = ShardCache(tmp_path / "cache", 10**9)
    assert store.prefetch(shard) is None
    with pytest.raises(OutageError):
        store.open(shard, 7.0)
    assert asked == [0.0, 7.0]
