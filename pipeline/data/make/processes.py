"""A `map` over processes."""

import ctypes
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from itertools import islice
from multiprocessing import get_context
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
R = TypeVar("R")
AHEAD = 4
"""Items that are given to a process before its first result is taken."""
_PR_SET_PDEATHSIG = 1


@contextmanager
def processes(workers: int, what: str) -> Iterator[Callable[[Callable[[T], R], Sequence[T]], Iterable[R]]]:
    """A `map` over processes, which keeps the order and shows a bar on a terminal. workers 1: this process
    alone.

    Processes are forked: importing torch anew would take each of them longer than a small set takes to write.
    They end with this process, however it ends.
    """

    def bar(results: Iterable[R], total: int) -> Iterable[R]:
        return tqdm(results, total=total, desc=what, disable=None, leave=False)

    if workers == 1:
        yield lambda function, items: bar(map(function, items), len(items))
        return
    options = {"mp_context": get_context("fork"), "initializer": _end_with, "initargs": (os.getpid(),)}
    with ProcessPoolExecutor(workers, **options) as pool:
        yield lambda function, items: bar(_mapped(pool, function, items, workers * AHEAD), len(items))


def _mapped(
    pool: ProcessPoolExecutor, function: Callable[[T], R], items: Sequence[T], ahead: int
) -> Iterator[R]:
    """`pool.map` that keeps only so many items and results at a time. After an error nothing more is
    begun."""
    rest = iter(items)
    running: list[Future[R]] = [pool.submit(function, item) for item in islice(rest, ahead)]
    try:
        while running:
            yield running.pop(0).result()
            running += [pool.submit(function, item) for item in islice(rest, 1)]
    finally:
        for future in running:
            future.cancel()


def _end_with(parent: int) -> None:
    """Lets the kernel end this process when its parent is gone, also by SIGKILL."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
