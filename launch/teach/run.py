"""The way of `dtem teach`: teaches, writes, measures, and writes again."""

import sys
from contextlib import closing
from typing import Any

from launch.measure.planning import Aims
from launch.measure.points import Sweep
from launch.published.agreement import agreement
from launch.published.batches import held_out_batches
from launch.published.merged import merged_models
from launch.published.pictures import Pictures
from launch.report.sweep_files import print_sweep, write_sweep
from launch.saved.policy_names import UNTRAINED
from launch.teach.lesson import Lesson, Order, lesson_of
from launch.teach.loop import teach
from launch.teach.plan import CONTROLS, tell_plan, tell_time
from launch.teach.result import CURVE, make_out, write_taught
from pipeline.backbone.adapters.collect import collect_adapter
from pipeline.backbone.adapters.config import name_of_data
from pipeline.backbone.published import Published
from pipeline.errors import StopAsked
from pipeline.files import folder_within
from pipeline.train.signals import StopRequest


def teach_published(order: Order, pictures: Pictures, published: Published) -> bool:
    """Teaches, and writes the adapter. Whether it did all that was asked: a signal to stop ends it early,
    with what it has. Raises PipelineError."""
    lesson = lesson_of(order, pictures, published)
    make_out(order.out)
    tell_plan(lesson)
    tell_time(lesson)
    with StopRequest() as stop:
        stop.begin()
        with closing(lesson.stream(order.batch_size, order.workers)) as stream:
            done = teach(
                lesson.model,
                lesson.signal,
                stream,
                order.how,
                lesson.counted,
                device=order.device,
                precision=order.precision,
                stopping=lambda: stop.asked,
            )
        return _written(lesson, done, stop)


def _written(lesson: Lesson, done: int, stop: StopRequest) -> bool:
    """Writes the adapter, then measures, and writes it with its curve. Whether all was done."""
    order, out = lesson.order, lesson.order.out
    if done == 0:
        print("stopped as asked before the first step: there is nothing to write", file=sys.stderr)
        return False
    recipe = _recipe(lesson, done)
    write_taught(lesson.model, lesson.published, out, recipe, None, order.license)
    if done < order.how.steps:
        print(f"stopped as asked after {done} of {order.how.steps} steps; wrote {out}, without a curve")
        return False
    if order.macs:
        try:
            sweep = _curve(lesson, stop)
        except StopAsked:
            print(f"stopped as asked while the curve was measured; wrote {out}, without it")
            return False
        write_taught(lesson.model, lesson.published, out, recipe, sweep, order.license)
        print_sweep([sweep])
        write_sweep([sweep], folder_within(out, CURVE))
    print(f"wrote {out}: dtem.patch(model, adapter='{out}') merges by it")
    return True


def _recipe(lesson: Lesson, done: int) -> dict[str, Any]:
    how = lesson.order.how
    return {
        "objective": "merge_cost",
        "options": {"pairs": how.pairs, "signal": lesson.signal.kind},
        "mode": "modular",
        "steps": done,
        "seed": how.seed,
        "data": name_of_data(lesson.order.data),
        "data_digest": lesson.pictures.digest,
    }


def _curve(lesson: Lesson, stop: StopRequest) -> Sweep:
    """The agreement with the unmerged model on the held-out pictures: of what was taught, of its embedding as
    it was drawn, and of policies that learn nothing."""
    order, published = lesson.order, lesson.published
    policies = (*CONTROLS, order.policy + UNTRAINED, order.policy)
    adapter = collect_adapter(lesson.model)
    found = agreement(
        merged_models(published.model, policies, seeds=[order.how.seed], adapter=adapter),
        lesson.signal,
        held_out_batches(
            lesson.pictures,
            lesson.held_out,
            published.size,
            published.pixels,
            batch_size=order.batch_size,
            workers=order.workers,
        ),
        Aims(order.macs),
        name=published.name,
        split="the held-out pictures",
        device=order.device,
        precision=order.precision,
        stopping=lambda: stop.asked,
    )
    assert found is not None, "teaching is one process"
    return found
