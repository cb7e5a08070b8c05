"""Writes shards: tars of samples in a fixed order, several at a time, and their manifest last.

A shard is finished when its index is there. So a maker that was ended at any instant goes on where it was,
when it is started again in the same way.
"""

import fcntl
import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from pipeline.data.layouts.tree import Samples, Tree, shuffled
from pipeline.data.make.processes import processes
from pipeline.data.make.tar_writer import TarWriter
from pipeline.data.shards.describe import (
    Described,
    Names,
    count_classes,
    described_by,
    manifest_of,
)
from pipeline.data.shards.index import SUFFIX, ShardIndex
from pipeline.data.shards.label_noise import LabelNoise
from pipeline.data.shards.locks import release
from pipeline.data.shards.manifest import MANIFEST, UNFINISHED, write_manifest
from pipeline.errors import ConfigError, SampleError
from pipeline.files import replacing, sha256_of, sync, write_bytes

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class ShardJob:
    """One shard to be written. make(items) gives its samples in order; both must pickle. Items that lie on
    the disk are read when they are needed."""

    name: str
    make: Callable[[Any], Samples]
    items: Sequence[Any]
    split: str | None = None
    """None: that of the name."""

    def fingerprint(self) -> bytes:
        """Text that is the same for the same items, made in the same way."""
        function, options = _told(self.make)
        return repr((self.name, function, options, list(self.items))).encode()

    def described(self, found: Described) -> Described:
        """What was found of it, with the split that it was made for."""
        own = found.shard if self.split is None else replace(found.shard, split=self.split)
        return replace(found, shard=own)


def _told(made: Callable[..., Any]) -> tuple[str, tuple[Any, ...]]:
    """The name of a function, and its options, which may be functions."""
    if not isinstance(made, partial):
        return f"{made.__module__}.{made.__qualname__}", ()
    options = [(name, _told(value) if callable(value) else value) for name, value in made.keywords.items()]
    return _told(made.func)[0], (made.args, sorted(options))


def tree_jobs(
    tree: Tree, *, shard_size: int, size: int | None, seed: int = 0, skip_bad: bool = False
) -> list[ShardJob]:
    """The shards of a set that lies in files of its own. Their order depends on the names of the files and
    the seed only. size: see `read_picture`. skip_bad: leave out, and log, files of which no sample can be
    made; else they raise SampleError."""
    make = partial(tree.samples, size=size)
    if skip_bad:
        make = partial(_without_bad, samples=make)
    return shuffled_jobs(tree.splits, make, shard_size=shard_size, seed=seed, kind=tree.kind)


def _without_bad(items: Sequence[Any], samples: Callable[[Sequence[Any]], Samples]) -> Samples:
    for item in items:
        try:
            yield from samples([item])
        except SampleError as err:
            log.warning("left out: %s", err)


def shuffled_jobs(
    splits: Mapping[str, Sequence[T]],
    make: Callable[[Sequence[T]], Samples],
    *,
    shard_size: int,
    seed: int,
    kind: str,
) -> list[ShardJob]:
    """The shards of each split, `train` where it has no name. The items of a split are shuffled; their new
    order depends on the given one, the seed, and the kind of set. Neither is held in memory."""
    jobs: list[ShardJob] = []
    for split, items in splits.items():
        jobs += jobs_of(split or "train", shuffled(items, kind, split, seed), make, shard_size)
    return jobs


def jobs_of(
    split: str, items: Sequence[T], make: Callable[[Sequence[T]], Samples], shard_size: int
) -> list[ShardJob]:
    """Shards of `shard_size` items in their order; the last one may be smaller."""
    starts = range(0, len(items), shard_size)
    parts = [items[start : start + shard_size] for start in starts]
    return [ShardJob(f"{split}-{n:05d}.tar", make, part, split) for n, part in enumerate(parts)]


def write_shards(
    jobs: Sequence[ShardJob],
    out: Path,
    *,
    classes: Sequence[str] = (),
    mask_classes: Sequence[str] = (),
    label_noise: Sequence[LabelNoise] = (),
    workers: int = 1,
) -> Path:
    """Writes the shards and their manifest into an empty or new folder, or goes on in one where the same set
    was begun. Returns the path of the manifest. Every file appears whole.

    Raises ConfigError where the folder holds other shards, or the beginning of another set, and where another
    maker is at work in it; SampleError where there is no sample.
    """
    with _begun(jobs, out):
        with processes(workers, "shards written") as mapped:
            written = mapped(_write_shard, [(job, str(out)) for job in jobs])
            described = [found for found in written if found is not None]
        if not described:
            raise SampleError(f"{out}: none of its samples can be made, so there is nothing to write")
        made = manifest_of(described, Names(tuple(classes), tuple(mask_classes)))
        write_manifest(out, replace(made, label_noise=tuple(label_noise)))
        (out / UNFINISHED).unlink()
    return out / MANIFEST


@contextmanager
def _begun(jobs: Sequence[ShardJob], out: Path) -> Iterator[None]:
    """Marks the folder as one in which these shards are made, by this process alone. Raises ConfigError, see
    write_shards."""
    plan = _plan(jobs)
    out.mkdir(parents=True, exist_ok=True)
    mark = os.open(out / UNFINISHED, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        begun = os.pread(mark, len(plan), 0).decode(errors="replace")
        # a shorter one was cut off before anything was made
        if len(begun) < len(plan):
            if any(path.suffix == ".tar" or path.name == MANIFEST for path in out.iterdir()):
                (out / UNFINISHED).unlink()
                raise ConfigError(f"{out} holds shards already; give an empty folder, or remove them")
            os.pwrite(mark, plan.encode(), 0)
            os.fsync(mark)
            sync(out)
        elif begun != plan:
            raise ConfigError(
                f"{out} holds the beginning of another set: other pictures, or other options. To go on give "
                "the command of then; to make a new set give an empty folder, or remove this one"
            )
        for left in out.glob(".partial-*"):
            left.unlink()
        yield
    except BlockingIOError as err:
        raise ConfigError(f"another maker is at work in {out}; wait until it is done, or end it") from err
    finally:
        release(mark)


def _plan(jobs: Sequence[ShardJob]) -> str:
    found = hashlib.sha256()
    for job in jobs:
        found.update(job.fingerprint() + b"\n")
    return found.hexdigest()


def _write_shard(task: tuple[ShardJob, str]) -> Described | None:
    """None for a shard all of whose samples are left out."""
    job, out = task
    path = Path(out, job.name)
    with suppress(FileNotFoundError, ValueError):
        return job.described(_finished(path))
    samples = iter(job.make(job.items))
    if (first := next(samples, None)) is None:
        log.warning("left out: %s, as none of its samples can be made", job.name)
        return None
    with replacing(path) as part, open(part, "wb") as file:
        writer = TarWriter(path, file)
        for key, members in chain([first], samples):
            writer.add(key, members)
        described, index = writer.finish()
    # the name of the tar is on the disk before its index, which says that it is whole
    sync(path.parent)
    write_bytes(path.with_name(path.name + SUFFIX), index)
    return job.described(described)


def _finished(path: Path) -> Described:
    """What a shard holds that was made before. Raises FileNotFoundError where it has no index, ValueError
    where the index is not one of this tar."""
    stored = path.with_name(path.name + SUFFIX).read_bytes()
    num_bytes = os.path.getsize(path)
    index = ShardIndex.from_bytes(stored, num_bytes)
    return described_by(str(path), index, num_bytes, sha256_of(path), count_classes(str(path), index))
