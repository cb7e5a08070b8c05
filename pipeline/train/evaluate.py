"""Evaluation that counts every sample once, on any number of ranks."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from pipeline.errors import ConfigError
from pipeline.interfaces import Batch, Engine
from pipeline.train.collective import from_rank0, maximum
from pipeline.train.metrics import MetricSums, mean

Scores = dict[str, dict[str, float]]
"""Task -> metric -> value, with `samples` among the metrics: how many were counted."""


class SizedBatches(Protocol):
    def __iter__(self) -> Iterator[Batch]: ...

    def __len__(self) -> int: ...


def evaluate(engine: Engine, loaders: Mapping[str, SizedBatches], *, reduction: Any = None) -> Scores:
    """Scores of engine.module on this rank's share of each task's samples, summed over ranks. Called by every rank.

    Ranks may have different numbers of batches, or none: nothing is exchanged until a task's last one.
    """
    was_training = engine.module.training
    engine.module.eval()
    try:
        return {task: _evaluate_task(engine, loader, reduction) for task, loader in loaders.items()}
    finally:
        engine.module.train(was_training)


def _evaluate_task(engine: Engine, loader: SizedBatches, reduction: Any) -> dict[str, float]:
    sums = MetricSums()
    for batch, counts in _in_step(engine, loader):
        result = engine.evaluate(batch.to(engine.device), reduction=reduction)
        if counts:
            sums.add(result)
    names = json.loads(from_rank0(engine, json.dumps(sums.names())))  # rank 0 has a batch if any rank has
    totals = sums.reduce(engine, names)
    samples = max((count for _, count in totals.values()), default=0.0)
    return {name: mean(pair) for name, pair in totals.items()} | {"samples": samples}


def _in_step(engine: Engine, loader: SizedBatches) -> Iterable[tuple[Batch, bool]]:
    """This rank's batches, and whether each counts. Where a forward is a collective, ranks with fewer batches repeat their last."""
    if not engine.forward_is_collective:
        yield from ((batch, True) for batch in loader)
        return
    rounds, batch = maximum(engine, len(loader)), None
    if maximum(engine, int(len(loader) == 0)) and rounds:
        raise ConfigError(f"fewer evaluation batches than the {engine.world_size} ranks of ZeRO 3; give a smaller data.eval_batch_size")
    done = 0
    for batch in loader:
        done += 1
        yield batch, True
    if batch is not None:
        yield from ((batch, False) for _ in range(done, rounds))
