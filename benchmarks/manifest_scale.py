"""What the start of a rank costs for sets of 10 to 100,000 remote shards: requests, seconds and memory, of
the first rank of a machine and of the others, and how large the indexes are. A checkout of another commit
can take part:

    python benchmarks/manifest_scale.py --before ../dtem-before
"""

import argparse
import http.server
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from record import ROOT, commit_of, write_record

from pipeline.data.shards.index import BLOCK, ShardIndex
from pipeline.data.shards.manifest import COLUMNS, Manifest
from pipeline.data.shards.table import Place, table

SAMPLES = 1000
"""Samples of a shard."""
PROBE = """
import json, sys, time, tracemalloc
import aiohttp, fsspec.implementations.http
from pipeline.data.shards.find import load_manifest
url, checked, traced = sys.argv[1], sys.argv[2] == "rank 0", sys.argv[3] == "memory"
if traced:
    tracemalloc.start()
start, busy = time.perf_counter(), time.process_time()
fingerprint = load_manifest(url, checked=checked).fingerprint
seconds, busy = time.perf_counter() - start, time.process_time() - busy
now, peak = tracemalloc.get_traced_memory()
print(json.dumps({"seconds": seconds, "busy": busy, "kept": now, "peak": peak}))
"""
"""Run in a process of its own, once for the seconds and once for the memory, which takes time to trace."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=int, nargs="+", default=[10, 1000, 100_000], metavar="N")
    parser.add_argument(
        "--repeats", type=int, default=5, metavar="N", help="starts that are timed (default 5)"
    )
    parser.add_argument("--before", metavar="CHECKOUT", help="of another commit, to measure as well")
    parser.add_argument("--record", default="benchmarks/records/manifest_scale.json")
    args = parser.parse_args()
    results = []
    for number in args.shards:
        for rank in ("rank 0", "another rank"):
            results.append(_start(ROOT, made(number), rank, args.repeats, "this tree"))
        if args.before:
            name = f"the tree before, {commit_of(Path(args.before))[:7]}"
            results.append(_start(Path(args.before), made(number), "rank 0", args.repeats, name, old=True))
    results.append({"name": f"index of {SAMPLES} samples of two members", "counts": index_bytes()})
    claim = (
        "Requests of a rank do not grow with the shards; a manifest of 100,000 opens in less than a second "
        "of a core, and in 100 MiB for the eight ranks of a machine together, as the first one reads it and "
        "the others map its columns; an index takes fewer bytes than in JSON, and a tenth of the time to open"
    )
    write_record(args.record, claim, results)
    return 0


def made(num_shards: int) -> Manifest:
    """A manifest of so many shards of a thousand samples."""
    names = [f"train-{number:06d}.tar" for number in range(num_shards)]
    hashes = [f"{number * 0x9E3779B97F4A7C15 % 2**256:064x}" for number in range(1, num_shards + 1)]
    sizes = [100 * 2**20 + BLOCK * (number % 999) for number in range(num_shards)]
    columns = (names, [SAMPLES] * num_shards, sizes, hashes, hashes[::-1], ["train"] * num_shards)
    classes = tuple(f"n{number:08d}" for number in range(1000))
    return Manifest(table((Place("", "", ""),), [0] * num_shards, *columns), ("cls", "jpg"), classes)


def _start(
    tree: Path, manifest: Manifest, rank: str, repeats: int, whose: str, *, old: bool = False
) -> dict[str, Any]:
    data = _format_1(manifest) if old else manifest.to_json(None)
    with _served(data, manifest) as (url, requests), tempfile.TemporaryDirectory() as scratch:
        # the first rank of a machine finds an empty cache
        caches = [f"{scratch}/{number if rank == 'rank 0' else 'shared'}" for number in range(repeats + 1)]
        if rank != "rank 0":
            _probe(tree, url, rank, "time", caches[0])
        before = requests[0]
        memory = _probe(tree, url, rank, "memory", caches[0])
        asked = requests[0] - before
        timed = [_probe(tree, url, rank, "time", cache) for cache in caches[1:]]
    counts = {
        "requests": asked,
        "seconds of a core": round(median(found["busy"] for found in timed), 3),
        "seconds": round(median(found["seconds"] for found in timed), 3),
        "MiB at the peak": round(memory["peak"] / 2**20, 1),
        "MiB kept": round(memory["kept"] / 2**20, 1),
        "MiB of the file": round(len(data) / 2**20, 1),
    }
    return {"name": f"start of {rank}, {len(manifest.shards)} shards, {whose}", "counts": counts}


def _probe(tree: Path, url: str, rank: str, what: str, cache: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, url, rank, what],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree), "DTEM_CACHE": cache},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def _format_1(manifest: Manifest) -> bytes:
    """The manifest as it was stored when each shard had an entry of its own."""
    plain = {"format": 1, "root": None, "schema": manifest.schema, "classes": manifest.classes}
    shards = [{name: getattr(shard, name) for name in COLUMNS} for shard in manifest.shards]
    return json.dumps(plain | {"digest": manifest.digest, "shards": shards}, indent=1).encode()


def index_bytes() -> dict[str, float]:
    """Bytes of an index with keys as long as those of ImageNet, and microseconds to open it; the same of the
    index in JSON."""
    keys = [f"n{number % 1000:08d}/n{number % 1000:08d}_{number:05d}" for number in range(SAMPLES)]
    sizes = np.array([[3, 90_000 + 37 * number] for number in range(SAMPLES)])
    ends = np.cumsum(-(-sizes.ravel() // BLOCK) * BLOCK + BLOCK)
    offsets = np.concatenate([[0], ends[:-1]]).reshape(SAMPLES, 2) + BLOCK
    index = ShardIndex.of(keys, ("cls", "jpg"), offsets, sizes)
    plain = {"keys": keys, "suffixes": index.suffixes, "offsets": offsets.tolist(), "sizes": sizes.tolist()}
    data, as_json = index.to_bytes(), json.dumps(plain, separators=(",", ":")).encode()
    end = int(ends[-1])
    return {
        "bytes": len(data),
        "bytes of keys": len("".join(keys)),
        "bytes in JSON": len(as_json),
        "microseconds": _microseconds(data, end),
        "microseconds in JSON": _microseconds(as_json, end),
    }


def _microseconds(data: bytes, num_bytes: int) -> float:
    """Median time to open an index."""
    seconds = []
    for _ in range(50):
        start = time.perf_counter()
        ShardIndex.from_bytes(data, num_bytes)
        seconds.append(time.perf_counter() - start)
    return round(1e6 * median(seconds), 1)


@contextmanager
def _served(data: bytes, manifest: Manifest) -> Iterator[tuple[str, list[int]]]:
    """URL of a server that has this manifest and says the sizes of its shards, and a list with the number of
    requests."""
    requests, sizes = [0], manifest.shards.num_bytes

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            requests[0] += 1
            name = self.path.rpartition("/")[2]
            at = None if name == "manifest.json" else int(name.removeprefix("train-").split(".")[0])
            self.send_response(200)
            self.send_header("Content-Length", str(len(data) if at is None else sizes[at]))
            self.send_header("ETag", '"1"')
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            if self.path.endswith("manifest.json"):
                self.wfile.write(data)
            else:
                self.close_connection = True

        def log_message(self, *args: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/set", requests
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    sys.exit(main())
