"""Worker processes that make batches, of one task or of several. Whoever is free makes the next one, and the
batches come in the order in which they are asked for."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from pipeline.config.schema import DataConfig
from pipeline.data.batches import BatchReader
from pipeline.data.lanes import Share
from pipeline.data.quarantine import Loaded
from pipeline.data.stalls import WorkerNotes, patiently
from pipeline.processes import end_with_starter
from pipeline.redact import keep_from_logs

T = TypeVar("T")
REST = 0.05
"""Seconds for which a worker rests where enough batches lie behind one that is late."""


@dataclass(frozen=True)
class Asked:
    """The batch of a share of a task, and its number in the order. share None: a rest."""

    number: int
    task: str = ""
    share: Share | None = None


@dataclass(frozen=True)
class Made:
    """What a worker made of what it was asked for. loaded None: it rested."""

    number: int
    task: str
    loaded: Loaded | None

    def pin_memory(self, device: str | None = None) -> "Made":
        """torch's loader calls this in its pinning thread."""
        return self if self.loaded is None else replace(self, loaded=self.loaded.pin_memory(device))


def loaded_by_workers(
    readers: Mapping[str, BatchReader],
    order: Iterable[tuple[str, Share]],
    config: DataConfig,
    stopping: Callable[[], bool],
) -> Iterator[tuple[str, Loaded]]:
    """The batch of each share with its task, made in worker processes or in this one. config: of the
    workers."""
    workers = config.workers
    turns, notes = _Turns(order, workers * config.prefetch), WorkerNotes(workers)
    for reader in readers.values():
        reader.notes = notes
    # as it is made: `_Turns` puts it in order, and so the next share goes to a worker that is free
    made = iter(
        loader_of(
            _Readers(readers),
            turns.asked(),
            workers,
            config.start_workers,
            prefetch=config.prefetch,
            in_order=workers == 0,
        )
    )
    batches = turns.taken(made, getattr(made, "_workers", ()))
    return patiently(batches, notes, config.max_wait, stopping) if workers else batches


def loader_of(
    dataset: Dataset[T],
    asked: Iterator[Any],
    workers: int,
    how: str,
    *,
    prefetch: int = 2,
    in_order: bool = True,
) -> DataLoader[T]:
    """Gives what the dataset has at each place that is asked for, made in worker processes or in this one.
    how: see `context_of`."""
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=asked,  # pyright: ignore[reportArgumentType]
        num_workers=workers,
        multiprocessing_context=context_of(how) if workers else None,
        prefetch_factor=prefetch if workers else None,
        pin_memory=torch.cuda.is_available(),
        collate_fn=_as_it_is,
        worker_init_fn=_as_a_child,
        # without it the loader draws its worker seeds, which are unused, from the run's own generator
        generator=torch.Generator(),
        in_order=in_order,
    )


class _Readers(Dataset[Made]):
    """Maps what is asked for to what its task's reader makes of it."""

    def __init__(self, readers: Mapping[str, BatchReader]):
        self._readers = dict(readers)

    def __getitem__(self, asked: Asked) -> Made:
        if asked.share is None:
            time.sleep(REST)
            return Made(asked.number, asked.task, None)
        return Made(asked.number, asked.task, self._readers[asked.task][asked.share])


class _Turns:
    """Puts batches into the order in which they are asked for. most: batches that wait for an earlier one;
    where there are as many, workers rest."""

    def __init__(self, order: Iterable[tuple[str, Share]], most: int):
        self._order, self._most = order, most
        self._early: dict[int, Made] = {}

    def asked(self) -> Iterator[Asked]:
        for number, (task, share) in enumerate(self._order):
            while len(self._early) > self._most:
                yield Asked(number)
            yield Asked(number, task, share)

    def taken(
        self, made: Iterable[Made], workers: Iterable[BaseProcess] = ()
    ) -> Iterator[tuple[str, Loaded]]:
        """The batches in order. workers: that make them. Raises RuntimeError where one of these has ended and
        the others rest; torch looks only when nothing at all has come for some seconds."""
        turn = 0
        for found in made:
            if found.loaded is not None:
                self._early[found.number] = found
            else:
                _miss_none(workers)
            while (following := self._early.pop(turn, None)) is not None:
                assert following.loaded is not None, "rests are not kept"
                turn += 1
                yield following.task, following.loaded


def _miss_none(workers: Iterable[BaseProcess]) -> None:
    for worker in workers:
        if not worker.is_alive():
            code = worker.exitcode or 0
            how = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
            raise RuntimeError(
                f"data worker (pid {worker.pid}) {how}; where memory has run out, give fewer workers"
            )


def context_of(how: str) -> BaseContext:
    """How worker processes start. `auto` forks this process, with its open files and decoded indexes, unless
    it uses CUDA, whose threads and locks a fork copies in whatever state they are: then a server that has
    imported what workers need, and nothing else, forks them."""
    if how == "auto":
        how = "forkserver" if torch.cuda.is_initialized() else "fork"
    context = get_context(how)
    if how == "forkserver":
        context.set_forkserver_preload(["pipeline.data.stream"])
    return context


def _as_a_child(worker: int) -> None:
    """No worker outlives the process that it loads for, however that ends, and none tells a secret."""
    end_with_starter()
    keep_from_logs()


def _as_it_is(loaded: Any) -> Any:
    return loaded
