"""Evaluation that counts every sample once, on any number of ranks."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

import torch

from pipeline.engine.protocol import Evaluator
from pipeline.errors import ConfigError
from pipeline.interfaces import Batch, Scores, TaskData
from pipeline.merging.schedule import AnyReduction
from pipeline.model import MultiTaskModel
from pipeline.modes import evaluation_mode
from pipeline.train.collective import anywhere, from_rank0
from pipeline.train.meeting import Meeting
from pipeline.train.metrics import TallySums

TaskScores = dict[str, Scores]
"""Task -> metric -> value, with `samples` among the metrics: how many were counted."""


class SizedBatches(Protocol):
    def __iter__(self) -> Iterator[Batch]: ...

    def __len__(self) -> int: ...


def evaluate(
    evaluator: Evaluator,
    loaders: Mapping[str, SizedBatches],
    *,
    reduction: AnyReduction | None = None,
    thorough: bool = False,
    meeting: Meeting | None = None,
) -> TaskScores:
    """Scores of the evaluator's model on this rank's share of each task's samples, summed over ranks. Called
    by every rank; rank 0 computes.

    Ranks may have different numbers of batches, or none. They meet before each one: data that one of them
    cannot read, and a request to stop (StopAsked, with a `meeting` of those who can ask), end it on all.
    thorough: also the metrics that take long.
    """
    meeting = meeting or Meeting(evaluator)
    with evaluation_mode(evaluator.module):
        return {
            task: _evaluate_task(evaluator, task, loader, reduction, thorough, meeting)
            for task, loader in loaders.items()
        }


def _evaluate_task(
    evaluator: Evaluator,
    task: str,
    loader: SizedBatches,
    reduction: AnyReduction | None,
    thorough: bool,
    meeting: Meeting,
) -> Scores:
    sums = TallySums()
    for batch, counts in _in_step(evaluator, loader, meeting):
        tallies = evaluator.evaluate(batch.to(evaluator.device), reduction=reduction)
        if counts:
            sums.add(tallies | {"samples": torch.full((), len(batch.images), device=evaluator.device)})
    totals = sums.reduce(evaluator)
    if not totals:
        return {"samples": 0.0}
    # on one rank, as ranks must not differ in what is best
    scores = evaluator.module.scores(task, totals, thorough=thorough) if evaluator.rank == 0 else {}
    return json.loads(from_rank0(evaluator, json.dumps(scores))) | {"samples": float(totals["samples"])}


def missing_samples(scores: TaskScores, data: Mapping[str, TaskData]) -> dict[str, int]:
    """Task -> how many of its samples are not in its scores; without those that miss none."""
    missing = {
        task: data[task].num_samples - int(values.get("samples") or 0) for task, values in scores.items()
    }
    return {task: count for task, count in missing.items() if count}


def ranking_score(model: MultiTaskModel, scores: TaskScores, best: str | None = None) -> float | None:
    """What ranks checkpoints: the main metric of the task `best`, or the geometric mean of all tasks' main
    metrics, for which a tenth more of any counts alike, whatever its unit. None where one of them is n/a, not
    finite, or was not evaluated."""
    values = [
        scores[task].get(model.tasks[task].main_metric) if task in scores else None
        for task in ([best] if best else scores)
    ]
    known = [max(value, 0.0) for value in values if value is not None and math.isfinite(value)]
    return math.prod(known) ** (1 / len(known)) if known and len(known) == len(values) else None


def _in_step(evaluator: Evaluator, loader: SizedBatches, meeting: Meeting) -> Iterable[tuple[Batch, bool]]:
    """This rank's batches, and whether each counts. Where a forward is a collective, ranks with fewer repeat
    their last. How many there are shows at the end: images of several sizes make more of them."""
    batches = iter(loader)
    first, over, last = True, False, None
    while True:
        batch: Batch | None = meeting.next(batches, "evaluates", last=over, patient=True)
        over = batch is None
        if not anywhere(evaluator, not over):
            return
        if first and evaluator.forward_is_collective and anywhere(evaluator, over):
            raise ConfigError(
                f"not a batch that can be read for each of the {evaluator.world_size} ranks that divide the "
                "weights; give a smaller data.eval_batch_size"
            )
        first = False
        if batch is not None:
            last = batch
            yield batch, True
        elif last is not None and evaluator.forward_is_collective:
            yield last, False
