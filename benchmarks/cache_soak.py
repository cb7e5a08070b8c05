"""Soak of the cache of remote shards: many processes read random samples through a cache that is too small
for them, while others are killed in the middle of a download. Every sample has to come, with its own bytes.

    python benchmarks/cache_soak.py --record benchmarks/records/reliability.json
    python benchmarks/cache_soak.py --processes 4 --reads 400 --shards 40 --kills 5 --record runs/soak.json
"""

import argparse
import http.server
import multiprocessing
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from record import add_entry

from pipeline.data.make.write import jobs_of, write_shards
from pipeline.data.shards.cache import ShardCache
from pipeline.data.shards.find import load_manifest
from pipeline.data.shards.locks import release
from pipeline.data.shards.reader import SampleReader
from pipeline.errors import PipelineError

FORK = multiprocessing.get_context("fork")
EACH = 16
"""Samples of a shard."""
WIDTH = 1
"""Shards that a reader has in use; it keeps 2 * WIDTH + 1 open."""
PATIENCE = 120.0
"""Seconds for which a reader asks again."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=16, help="that read at the same time (default 16)")
    parser.add_argument("--reads", type=int, default=100_000, help="in all (default 100,000)")
    parser.add_argument("--shards", type=int, default=400, help="of the set (default 400)")
    parser.add_argument("--kills", type=int, default=100, help="processes that are killed (default 100)")
    parser.add_argument("--record", default="benchmarks/records/cache_soak.json")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as work:
        counts = soak(Path(work), args.processes, args.reads, args.kills, args.shards)
    claim = "Processes that share a cache smaller than their set lose no sample, also where others are killed"
    results = [{"name": "cache of remote shards", "counts": counts}]
    add_entry(args.record, claim, results)
    return 0 if counts["lost"] == 0 and counts["left files"] == 0 else 1


def soak(work: Path, processes: int, reads: int, kills: int, shards: int) -> dict[str, int]:
    """Counts: what was read, lost (not there, or with other bytes), and downloaded; the most bytes in the
    cache and its limit; what killed processes have left when all is over."""
    write_shards(jobs_of("train", range(shards * EACH), _samples, EACH), work / "set", workers=2)
    sizes = [path.stat().st_size for path in (work / "set").glob("*.tar")]
    limit = max(sizes) * shards // 4
    with _served(work / "set") as (url, downloads):
        read = partial(_read, url, work / "cache", limit, shards)
        queue = FORK.SimpleQueue()
        readers = [
            FORK.Process(target=_report, args=(queue, read, number, reads // processes))
            for number in range(processes)
        ]
        for reader in readers:
            reader.start()
        killer = threading.Thread(target=_kill, args=(read, kills))
        killer.start()
        largest, found = 0, Counter()
        while any(reader.is_alive() for reader in readers):
            largest = max(largest, _size(work / "cache"))
            time.sleep(0.02)
        killer.join()
        for reader in readers:
            reader.join()
        while not queue.empty():
            found.update(queue.get())
        unfinished = sum(reader.exitcode != 0 for reader in readers)
        _sweep(url, work / "cache", limit)
    left = [path for path in (work / "cache").iterdir() if path.suffix in (".lock", ".part")]
    return {
        "processes": processes,
        "reads": found["read"],
        "lost": found["lost"] + unfinished,
        "downloads": downloads[0],
        "killed": kills,
        "largest bytes": largest,
        "limit bytes": limit,
        "bytes that leases may hold": processes * (2 * WIDTH + 1) * max(sizes),
        "left files": len(left),
    }


def _samples(numbers: Sequence[int]) -> Iterator[tuple[str, dict[str, bytes]]]:
    for number in numbers:
        yield f"{number:06d}", {"jpg": content(number), "cls": str(number).encode()}


def content(number: int) -> bytes:
    """The bytes of a sample, which follow from its number."""
    return random.Random(number).randbytes(2000 + number)


def _report(queue, read, seed: int, reads: int) -> None:
    queue.put(dict(read(seed, reads)))


def _read(url: str, folder: Path, limit: int, shards: int, seed: int, reads: int) -> Counter[str]:
    """Reads random samples, a few neighbours from each shard."""
    cache, rng, counts = ShardCache(folder, limit), random.Random(seed), Counter()
    reader = SampleReader(load_manifest(url, checked=False), WIDTH, cache, PATIENCE)
    shard = 0
    for number in range(reads):
        if number % 4 == 0:
            shard = rng.randrange(shards)
        sample = rng.randrange(EACH)
        own = shard * EACH + sample
        try:
            members = reader.read(shard, sample)
            good = members == {"jpg": content(own), "cls": str(own).encode()}
            good &= reader.key(shard, sample) == f"{own:06d}"
        except PipelineError as err:
            print(err, file=sys.stderr)
            good = False
        counts.update({"read": 1, "lost": not good})
    return counts


def _kill(read, kills: int) -> None:
    """Starts processes that read as the others do, and kills each at a random instant."""
    rng = random.Random(0)
    for number in range(kills):
        victim = FORK.Process(target=read, args=(10_000 + number, 1_000_000))
        victim.start()
        time.sleep(rng.uniform(0, 0.5))
        victim.kill()
        victim.join()


def _sweep(url: str, folder: Path, limit: int) -> None:
    """One more download, which removes what the killed processes have left."""
    cache, manifest = ShardCache(folder, limit), load_manifest(url, checked=False)
    path = folder / f"{manifest.shards[0].sha256[:32]}.tar"
    path.unlink(missing_ok=True)
    release(cache.open(manifest.shards[0], PATIENCE))


def _size(folder: Path) -> int:
    total = 0
    for path in folder.glob("*.tar"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


@contextmanager
def _served(folder: Path) -> Iterator[tuple[str, list[int]]]:
    """URL of a server of the folder, and a list with the number of tars that it was asked for."""
    downloads = [0]

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            downloads[0] += self.path.endswith(".tar")
            super().do_GET()

        def log_message(self, *args: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", downloads
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    sys.exit(main())
