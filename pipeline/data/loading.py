"""Worker processes that make batches."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from pipeline.config.schema import DataConfig
from pipeline.data.batches import BatchReader
from pipeline.data.lanes import Share
from pipeline.data.quarantine import Loaded
from pipeline.data.stalls import patiently
from pipeline.processes import end_with_parent


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
        # forked workers share open files and decoded indexes, which need not be sent
        multiprocessing_context="fork" if workers else None,
        prefetch_factor=config.prefetch if workers else None,
        pin_memory=torch.cuda.is_available(),
        collate_fn=_as_it_is,
        worker_init_fn=_as_a_child,
        # without it the loader draws its worker seeds, which are unused, from the run's own generator
        generator=torch.Generator(),
    )
    batches = iter(loader)
    return patiently(batches, reader.notes, config.max_wait, stopping) if workers else batches


def _as_a_child(worker: int) -> None:
    """No worker outlives the process that it loads for, however that ends."""
    end_with_parent()


def _as_it_is(loaded: Any) -> Any:
    return loaded
