"""Worker processes that make batches."""

from collections.abc import Callable, Iterable, Iterator
from multiprocessing import get_context
from multiprocessing.context import BaseContext
from typing import Any

import torch
from torch.utils.data import DataLoader

from pipeline.config.schema import DataConfig
from pipeline.data.batches import BatchReader
from pipeline.data.lanes import Share
from pipeline.data.quarantine import Loaded
from pipeline.data.stalls import patiently
from pipeline.processes import end_with_parent
from pipeline.redact import keep_from_logs


def loaded_by_workers(
    reader: BatchReader, shares: Iterable[Share], config: DataConfig, stopping: Callable[[], bool]
) -> Iterator[Loaded]:
    """The batch of each share, made in worker processes or in this one."""
    workers = config.workers
    loader: DataLoader[Loaded] = DataLoader(
        reader,
        batch_size=None,
        sampler=shares,
        num_workers=workers,
        multiprocessing_context=_context(config.start_workers) if workers else None,
        prefetch_factor=config.prefetch if workers else None,
        pin_memory=torch.cuda.is_available(),
        collate_fn=_as_it_is,
        worker_init_fn=_as_a_child,
        # without it the loader draws its worker seeds, which are unused, from the run's own generator
        generator=torch.Generator(),
    )
    batches = iter(loader)
    return patiently(batches, reader.notes, config.max_wait, stopping) if workers else batches


def _context(how: str) -> BaseContext:
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
    end_with_parent()
    keep_from_logs()


def _as_it_is(loaded: Any) -> Any:
    return loaded
