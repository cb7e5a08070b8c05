"""`--resume extend`: a run that goes on with other settings than it was saved with.

Weights, moments, averages and the number of steps go on. Everything that is a function of the step (learning
rates, reductions, which tasks a step holds) is that of the new settings at this step, as if they had held
from the start: a longer cosine goes on from its own value there. So a run that is extended is not the run
that would have had the new settings from the start, and each difference is said.
"""

import fnmatch
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pipeline.data.stream import TrainStream
from pipeline.errors import CheckpointError
from pipeline.train.rates import reported_rates
from pipeline.train.run import Run

_DATA = "schema limit_val overfit img_size augment.* exif_rotation caption_field label_field tokenizer*"
SCORED = (
    *("train.best", "merging.*", "backbone.proportional_attention", "tasks.*.merging*", "tasks.*.head.*"),
    *(f"tasks.*.data.{name}" for name in _DATA.split()),
)
"""Fields that change what an evaluation says: a score of before is not compared with one of now."""
ORDERED = ("seed", "tasks.{}.data.shuffle_shards", "tasks.{}.data.overfit")
"""Fields by which the samples of a task come in another order; shards and lanes a stream knows itself."""


def extend(run: Run, streams: Mapping[str, Mapping[str, int]], differences: Collection[str]) -> Iterator[str]:
    """Sets the streams and the best score of a run whose progress is restored. Yields lines about it.

    streams: their saved states, by task. differences: the fields that differ. Raises CheckpointError for a
    run that is past its new end.
    """
    step, total = run.progress.step, run.total_steps
    if step > total:
        raise CheckpointError(
            f"the run has {step} steps and is to end after {total}; give train.steps above {step}, or go "
            "back to an older checkpoint by --resume PATH, with the settings of then"
        )
    for name, stream in run.streams.items():
        moved = any(field.format(name) in differences for field in ORDERED)
        yield from _continue_stream(name, stream, streams[name], moved)
    yield from forget_best(run, differences, (*SCORED, "tasks.*.data.val"))
    if differences and step < total:
        rates = reported_rates(run.groups, step, run.config, total)
        yield f"the schedule goes on at step {step} of {total}: learning rate {rates['lr']:.3g}"


def forget_best(run: Run, differences: Collection[str], scored: Collection[str] = SCORED) -> Iterator[str]:
    """Lets the next score be the best one where one of the fields that differ changes what scores say. Yields
    a line about it. The place of `data.val` may change where its shards stay."""
    if run.progress.best is not None and _any_of(scored, differences):
        run.progress.best = None
        yield "the best score of before does not count: what is evaluated has changed"


def _continue_stream(name: str, stream: TrainStream, state: Mapping[str, Any], moved: bool) -> Iterator[str]:
    """moved: whether the position of before is none in the order of now."""
    try:
        stream.load_state_dict(state)
    except CheckpointError:
        moved = True
    if moved:
        stream.begin_epoch_after(state["samples"])
        yield f"tasks.{name}.data: other shards or another order than before; an epoch of them begins"


def _any_of(patterns: Collection[str], fields: Collection[str]) -> bool:
    return any(fnmatch.fnmatch(field, pattern) for field in fields for pattern in patterns)
