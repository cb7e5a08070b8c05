"""The way of `dtem teach`: teaches, writes, measures, and writes again."""

import sys
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from launch.measure.points import Sweep
from launch.published.agreement import agreement
from launch.published.batches import held_out_batches, training_batches
from launch.published.merged import UNTRAINED, counted_for, merged_model, merged_models
from launch.published.pictures import Pictures, divided
from launch.published.signal import Signal, signal_of
from launch.report.sweep_files import print_sweep, write_sweep
from launch.teach.estimate import Estimate, estimated, time_to_read
from launch.teach.loop import Teaching, in_words, teach
from launch.teach.result import CURVE, check_out, make_out, write_taught
from pipeline.backbone.adapters.collect import collect_adapter
from pipeline.backbone.adapters.config import name_of_data
from pipeline.backbone.macs import Counted
from pipeline.backbone.patching.merging_model import MergingModel
from pipeline.backbone.published import Published
from pipeline.config.schema import Preprocessing
from pipeline.engine import launched
from pipeline.errors import ConfigError, StopAsked
from pipeline.files import folder_within
from pipeline.interfaces import Batch
from pipeline.merging.policies import POLICIES
from pipeline.train.signals import StopRequest

CROP = (0.25, 1.0)
"""Range of the area of the crops that are learned from."""
CONTROLS = ("random", "tome")
READ, LONG = 8, 1800
"""Pictures that are read to know how long that takes; seconds beyond which a way to fewer is said."""


@dataclass(frozen=True)
class Order:
    """What is asked for. signal: None takes the first that the model has. macs: shares at which the result is
    measured; none leaves the curve out. Raises ConfigError."""

    data: str
    out: Path
    how: Teaching
    policy: str
    signal: str | None
    macs: Sequence[float]
    batch_size: int
    workers: int
    device: torch.device
    precision: str
    license: str | None

    def __post_init__(self) -> None:
        if not POLICIES.build(self.policy).learned:
            raise ConfigError(f"policy '{self.policy}' learns nothing; give one that does, such as 'dtem'")
        if self.batch_size < 1 or self.workers < 0:
            raise ConfigError(
                f"--batch-size is {self.batch_size} and --workers {self.workers}; give at least 1 and 0"
            )
        if (processes := launched.world_size()) > 1:
            raise ConfigError(f"teaching runs in one process, and a launcher started {processes}; start one")
        check_out(self.out)


def teach_published(order: Order, pictures: Pictures, published: Published) -> bool:
    """Teaches, and writes the adapter. Whether it did all that was asked: a signal to stop ends it early,
    with what it has. Raises PipelineError."""
    how, signal = order.how, signal_of(published, order.signal)
    parts = divided(len(pictures), published.size)
    model = merged_model(published.model.to(order.device), order.policy, how.reduction, seed=how.seed)
    image = torch.zeros(1, 3, *published.size, device=order.device)
    counted = counted_for(model, image)
    make_out(order.out)
    _tell_plan(order, counted, signal, published.pixels, [len(part) for part in parts])
    _tell_time(order, _estimated(order, pictures, published, model, signal, counted, parts[0]), len(parts[1]))
    with StopRequest() as stop:
        stop.begin()
        stream = _stream(order, pictures, published, parts[0], order.batch_size, order.workers)
        done = teach(
            model,
            signal,
            stream,
            how,
            counted,
            device=order.device,
            precision=order.precision,
            stopping=lambda: stop.asked,
        )
        stream.close()
        return _written(order, pictures, published, model, signal, parts[1], done, stop)


def _estimated(
    order: Order,
    pictures: Pictures,
    published: Published,
    model: MergingModel,
    signal: Signal,
    counted: Counted,
    numbers: Sequence[int],
) -> Estimate:
    with closing(_stream(order, pictures, published, numbers, READ, 0)) as stream:
        read = time_to_read(stream) * order.batch_size
    return estimated(
        model,
        signal,
        order.how,
        counted,
        size=published.size,
        batch_size=order.batch_size,
        device=order.device,
        precision=order.precision,
        read=read,
        workers=order.workers,
    )


def _stream(
    order: Order,
    pictures: Pictures,
    published: Published,
    numbers: Sequence[int],
    batch_size: int,
    workers: int,
) -> Generator[Batch, None, None]:
    return training_batches(
        pictures,
        numbers,
        published.size,
        published.pixels,
        batch_size=batch_size,
        seed=order.how.seed,
        workers=workers,
        crop_scale=CROP,
    )


def _written(
    order: Order,
    pictures: Pictures,
    published: Published,
    model: MergingModel,
    signal: Signal,
    held_out: Sequence[int],
    done: int,
    stop: StopRequest,
) -> bool:
    """Writes the adapter, then measures, and writes it with its curve. Whether all was done."""
    how, out = order.how, order.out
    if done == 0:
        print("stopped as asked before the first step: there is nothing to write", file=sys.stderr)
        return False
    recipe = {
        "objective": "merge_cost",
        "options": {"pairs": how.pairs, "signal": signal.kind},
        "mode": "modular",
        "steps": done,
        "seed": how.seed,
        "data": name_of_data(order.data),
        "data_digest": pictures.digest,
    }
    write_taught(model, published, out, recipe, None, order.license)
    if done < how.steps:
        print(f"stopped as asked after {done} of {how.steps} steps; wrote {out}, without a curve")
        return False
    if order.macs:
        try:
            sweep = _curve(order, pictures, published, model, signal, held_out, stop)
        except StopAsked:
            print(f"stopped as asked while the curve was measured; wrote {out}, without it")
            return False
        write_taught(model, published, out, recipe, sweep, order.license)
        print_sweep([sweep])
        write_sweep([sweep], folder_within(out, CURVE))
    print(f"wrote {out}: dtem.patch(model, adapter='{out}') merges by it")
    return True


def _curve(
    order: Order,
    pictures: Pictures,
    published: Published,
    model: MergingModel,
    signal: Signal,
    held_out: Sequence[int],
    stop: StopRequest,
) -> Sweep:
    """The agreement with the unmerged model on the held-out pictures: of what was taught, of its embedding as
    it was drawn, and of policies that learn nothing."""
    policies = (*CONTROLS, order.policy + UNTRAINED, order.policy)
    adapter = collect_adapter(model)
    models = merged_models(published.model, policies, seed=order.how.seed, adapter=adapter)
    return agreement(
        models,
        signal,
        held_out_batches(
            pictures,
            held_out,
            published.size,
            published.pixels,
            batch_size=order.batch_size,
            workers=order.workers,
        ),
        order.macs,
        name=published.name,
        split="the held-out pictures",
        device=order.device,
        precision=order.precision,
        stopping=lambda: stop.asked,
    )


def _tell_plan(
    order: Order, counted: Counted, signal: Signal, pixels: Preprocessing, numbers: Sequence[int]
) -> None:
    """What will be done. numbers: of the pictures to learn from, and of those held out. A step is a forward
    pass, and a backward pass of as many MACs at most, as no weight of the model has a gradient."""
    how = order.how
    whole, merged = (counted.macs(counted.schedule(r)).total / 1e9 for r in (0, how.reduction))
    most = 2 * whole * order.batch_size * how.steps / 1e3
    print(
        f"{whole:.3g} GMACs an image, {merged:.3g} with {how.reduction} tokens merged per block; "
        f"{numbers[0]} pictures to learn from, {numbers[1]} held out; signal: {signal.kind}; "
        f"mean {list(pixels.mean)}, std {list(pixels.std)}\n"
        f"{how.steps} steps of {order.batch_size} images, at most {most:.3g} TMACs, on {order.device} "
        f"({order.precision})",
        flush=True,
    )


def _tell_time(order: Order, estimate: Estimate, held_out: int) -> None:
    """How long it will take, and what makes it shorter where that is longer than LONG."""
    policies = len(CONTROLS) + 2
    passes = held_out / order.batch_size * (2 + policies * sum(order.macs)) if order.macs else 0.0
    whole, steps = estimate.seconds(order.how.steps, passes), estimate.seconds(order.how.steps, 0)
    curve = f", of which the curve {in_words(whole - steps)}" if order.macs else ""
    shorter = "; fewer --steps, smaller --batch-size or --img-size take less" if whole > LONG else ""
    print(f"about {in_words(whole)}{curve}: {estimate}{shorter}", flush=True)
