"""What `dtem teach` says before the first step: what will be done, how long it takes, in how much memory."""

from contextlib import closing

from launch.teach.estimate import Estimate, estimated, time_to_read
from launch.teach.lesson import Lesson
from launch.teach.loop import in_words

CONTROLS = ("random", "tome")
"""Policies that learn nothing, beside which the result is measured; so is its embedding as it was drawn."""
READ, LONG = 8, 1800
"""Pictures that are read to know how long that takes; seconds beyond which a way to fewer is said."""


def tell_plan(lesson: Lesson) -> None:
    """The work of it. A step is a forward pass, and a backward pass of as many MACs at most, as no weight of
    the model has a gradient."""
    order, how, pixels = lesson.order, lesson.order.how, lesson.published.pixels
    counted = lesson.counted
    whole, merged = (counted.macs(counted.schedule(r)).total / 1e9 for r in (0, how.reduction))
    most = 2 * whole * order.batch_size * how.steps / 1e3
    print(
        f"{whole:.3g} GMACs an image, {merged:.3g} with {how.reduction} tokens merged per block; "
        f"{len(lesson.learned_from)} pictures to learn from, {len(lesson.held_out)} held out; "
        f"signal: {lesson.signal.kind}; mean {list(pixels.mean)}, std {list(pixels.std)}\n"
        f"{how.steps} steps of {order.batch_size} images, at most {most:.3g} TMACs, on {order.device} "
        f"({order.precision})",
        flush=True,
    )


def tell_time(lesson: Lesson) -> None:
    """How long it will take by a trial, and what makes it shorter where that is longer than LONG."""
    order, estimate = lesson.order, _estimate(lesson)
    policies = len(CONTROLS) + 2
    passes = len(lesson.held_out) / order.batch_size * (2 + policies * sum(order.macs)) if order.macs else 0.0
    whole, steps = estimate.seconds(order.how.steps, passes), estimate.seconds(order.how.steps, 0)
    curve = f", of which the curve {in_words(whole - steps)}" if order.macs else ""
    shorter = "; fewer --steps, smaller --batch-size or --img-size take less" if whole > LONG else ""
    print(f"about {in_words(whole)}{curve}: {estimate}{shorter}", flush=True)


def _estimate(lesson: Lesson) -> Estimate:
    order = lesson.order
    with closing(lesson.stream(READ, workers=0)) as stream:
        read = time_to_read(stream) * order.batch_size
    return estimated(
        lesson.model,
        lesson.signal,
        order.how,
        lesson.counted,
        size=lesson.published.size,
        batch_size=order.batch_size,
        device=order.device,
        precision=order.precision,
        read=read,
        workers=order.workers,
    )
