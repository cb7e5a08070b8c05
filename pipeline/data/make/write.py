"""Writes shards: tars of samples in a fixed order, several at a time, and their manifest last."""

import io
import os
import random
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
from pipeline.rng import seed_of

Samples = Iterable[tuple[str, Mapping[str, bytes]]]
"""Key of each sample, and its members: a mapping of suffix to bytes."""
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class ShardJob:
    """One shard to be written. make(items) gives its samples in order; both must pickle."""

    name: str
    make: Callable[[Any], Samples]
    items: Sequence[Any]


def shuffled_jobs(
    splits: Mapping[str, Sequence[T]],
    make: Callable[[Sequence[T]], Samples],
    *,
    shard_size: int,
    seed: int,
    kind: str,
) -> list[ShardJob]:
    """The shards of each split, `train` where it has no name. The items of a split are shuffled; their new
    order depends on the given one, the seed, and the kind of set."""
    jobs: list[ShardJob] = []
    for split, items in splits.items():
        order = list(items)
        random.Random(seed_of(seed, kind, split)).shuffle(order)
        jobs += jobs_of(split or "train", order, make, shard_size)
    return jobs


def jobs_of(
    split: str, items: Sequence[T], make: Callable[[Sequence[T]], Samples], shard_size: int
) -> list[ShardJob]:
    """Shards of `shard_size` items in their order; the last one may be smaller."""
    starts = range(0, len(items), shard_size)
    parts = [items[start : start + shard_size] for start in starts]
    return [ShardJob(f"{split}-{n:05d}.tar", make, part) for n, part in enumerate(parts)]


def write_shards(
    jobs: Sequence[ShardJob],
    out: Path,
    *,
    classes: Sequence[str] = (),
    mask_classes: Sequence[str] = (),
    workers: int = 1,
) -> Path:
    """Writes the shards and their manifest into an empty or new folder, and returns the path of the manifest.
    Every file appears whole. Raises ConfigError where the folder holds shards."""
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
    """Writes the manifest of tars into `out`, and returns its path. Remote tars are downloaded for it, and
    not kept.

    root: the folder in which readers find the shards; None: `out`. classes None: the names are those of
    `classes.json` beside the shards (see `describe`).
    """
    names = Names(tuple(classes), tuple(mask_classes)) if classes is not None else None
    out.mkdir(parents=True, exist_ok=True)
    with processes(workers, "shards indexed") as mapped:
        manifest = describe(tars, hashes=True, names=names, mapper=mapped)
    return write_manifest(out, manifest, root)


@contextmanager
def processes(workers: int, what: str) -> Iterator[Callable[[Callable[[T], R], Sequence[T]], Iterable[R]]]:
    """A `map` over processes, which keeps the order and shows a bar on a terminal. workers 1: this process
    alone.

    Processes are forked: importing torch anew would take each of them longer than a small set takes to write.
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
                for key, members in job.make(job.items):
                    for suffix, data in members.items():
                        member = tarfile.TarInfo(f"{key}.{suffix}")
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
