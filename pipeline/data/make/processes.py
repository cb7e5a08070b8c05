"""A `map` over processes."""

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from itertools import islice
from multiprocessing import get_context
from typing import TypeVar

from tqdm import tqdm

from pipeline.processes import end_with_parent

T = TypeVar("T")
R = TypeVar("R")
AHEAD = 4
"""Items that are given to a process before its first result is taken."""


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
    ended = (signal.SIGKILL, os.getpid())
    with ProcessPoolExecutor(workers, get_context("fork"), end_with_parent, ended) as pool:
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
