"""One pool of workers that makes the batches of all tasks, in the order in which a run takes them."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from pipeline.data.lanes import Share
from pipeline.data.loading import loaded_by_workers
from pipeline.data.quarantine import Loaded
from pipeline.data.stream import TrainStream
from pipeline.interfaces import Batch


def batches_of_all(streams: Mapping[str, TrainStream], plan: Iterable[str]) -> dict[str, Iterator[Batch]]:
    """Iterators of the streams, which give what each would give by itself; workers start with the first
    batch. plan: the task of each batch from here on, without an end.

    The streams have the same number of workers, which the pool has, and the same way to start them. The
    longest of their prefetch and of their waits count. Batches that are taken in another order than that of
    the plan are kept until then.
    """
    pool = _Pool(streams, plan)
    return {name: stream.checked(pool.of(name)) for name, stream in streams.items()}


class _Pool:
    def __init__(self, streams: Mapping[str, TrainStream], plan: Iterable[str]):
        self._made = _made(streams, plan)
        self._early: dict[str, deque[Loaded]] = {name: deque() for name in streams}

    def of(self, task: str) -> Iterator[Loaded]:
        own = self._early[task]
        while True:
            while not own:
                name, loaded = next(self._made)
                self._early[name].append(loaded)
            yield own.popleft()


def _made(streams: Mapping[str, TrainStream], plan: Iterable[str]) -> Iterator[tuple[str, Loaded]]:
    """What workers make, in the order of the plan."""
    configs = [stream.config for stream in streams.values()]
    config = replace(
        configs[0],
        prefetch=max(own.prefetch for own in configs),
        max_wait=max(own.max_wait for own in configs),
    )
    readers = {name: stream.reader for name, stream in streams.items()}
    stopping = next(iter(streams.values())).stopping
    yield from loaded_by_workers(readers, _shares(streams, plan), config, stopping)


def _shares(streams: Mapping[str, TrainStream], plan: Iterable[str]) -> Iterator[tuple[str, Share]]:
    shares = {name: stream.shares() for name, stream in streams.items()}
    for task in plan:
        yield task, next(shares[task])
