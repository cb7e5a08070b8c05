"""One fuzz case: a reader on a changed input, watched. For Hypothesis in `make test`, `make fuzz` at length,
and the cases that once failed."""

import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from mutations import changed_bytes
from watch import watching

from pipeline.errors import PipelineError

MEMORY = 1 << 30
"""Bytes that a case may take beside what the imports took."""
QUICK = 30
"""Cases of each target in `make test`."""
Mutate = Callable[[Random, Sequence[bytes]], bytes]


@dataclass(frozen=True)
class Target:
    """A reader of strangers' data. A new one joins by an entry in `fuzz_targets.TARGETS`."""

    name: str
    seeds: Sequence[bytes]
    """Good inputs."""
    read: Callable[[bytes, Path], object]
    """Reads an input; the folder is new or holds what the case before left."""
    mutate: Mutate = changed_bytes
    errors: tuple[type[Exception], ...] = (PipelineError,)
    """What it may raise."""
    share: int = 10
    """Its part of the cases of a long run, beside the others' parts."""

    def case(self, seed: int, number: int) -> bytes:
        """The input of a case, which depends on nothing else."""
        return self.mutate(Random(f"{self.name} {seed} {number}"), self.seeds)


def fault(target: Target, data: bytes, folder: Path) -> str:
    """What is wrong with the answer to an input, in words; empty for a value or one of `target.errors`."""
    with watching(folder) as watch:
        try:
            target.read(data, folder)
        except target.errors:
            pass
        except Exception as err:  # noqa: BLE001 - that is what is looked for
            return f"{type(err).__name__}: {err!s:.300}"
    return "; ".join(watch.events)


@contextmanager
def limited_memory(extra: int = MEMORY) -> Iterator[None]:
    """While it is open, this process gets `extra` bytes of address space more than it has, no further."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + extra, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
