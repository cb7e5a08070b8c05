"""Writes shards: tars of samples in a fixed order, several at a time, and their manifest last."""

import io
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from pipeline.data.shards.describe import Names, describe
from pipeline.data.shards.manifest import write_manifest
from pipeline.errors import ConfigError

Members = Mapping[str, bytes]
"""suffix -> bytes of one sample."""
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class ShardJob:
    """One shard to be written. make(arguments) yields (key, members) in order; both must pickle."""

    name: str
    make: Callable[[Any], Iterable[tuple[str, Members]]]
    arguments: Any


def write_shards(
    jobs: Sequence[ShardJob],
    out: Path,
    *,
    classes: Sequence[str] = (),
    mask_classes: Sequence[str] = (),
    workers: int = 1,
) -> Path:
    """Writes the shards and their manifest into an empty (or new) folder; returns the manifest's path. Every
    file appears whole."""
    if out.exists() and any(path.suffix == ".tar" or path.name == "manifest.json" for path in out.iterdir()):
        raise ConfigError(f"{out} holds shards already; give an empty folder, or remove them")
    out.mkdir(parents=True, exist_ok=True)
    with processes(workers, "shards written") as mapped:
        for _ in mapped(_write_shard, [(job, str(out)) for job in jobs]):
            pass
    return index_shards(
        [f"{out}/{job.name}" for job in jobs],
        out,
        classes=classes,
        mask_classes=mask_classes,
        workers=workers,
    )


def index_shards(
    tars: Sequence[str],
    out: Path,
    *,
    root: str | None = None,
    classes: Sequence[str] | None = None,
    mask_classes: Sequence[str] = (),
    workers: int = 1,
) -> Path:
    """Writes the manifest of tars into `out`; root: where readers find the shards, if not there. Remote ones
    are downloaded in passing.

    classes None: the names are those of `classes.json` beside the shards (see `describe`).
    """
    names = Names(tuple(classes), tuple(mask_classes)) if classes is not None else None
    out.mkdir(parents=True, exist_ok=True)
    with processes(workers, "shards indexed") as mapped:
        manifest = describe(tars, hashes=True, names=names, mapper=mapped)
    return write_manifest(out, manifest, root)


@contextmanager
def processes(workers: int, what: str) -> Iterator[Callable[[Callable[[T], R], Sequence[T]], Iterable[R]]]:
    """A `map` over processes (this one alone where workers is 1), in order, with a bar on a terminal.

    They are forked, because importing torch anew takes each of them longer than a small set takes to write.
    """

    def bar(results: Iterable[R], total: int) -> Iterable[R]:
        return tqdm(results, total=total, desc=what, disable=None, leave=False)

    if workers == 1:
        yield lambda function, items: bar(map(function, items), len(items))
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
        yield lambda function, items: bar(pool.map(function, items), len(items))


def _write_shard(task: tuple[ShardJob, str]) -> None:
    job, out = task
    path = Path(out, job.name)
    part = path.with_name(f".{job.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
                for key, members in job.make(job.arguments):
                    for suffix, data in members.items():
                        member = tarfile.TarInfo(f"{key}.{suffix}")
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def cut(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """Runs of `size` items; the last one may be shorter."""
    return [items[first : first + size] for first in range(0, len(items), size)]
