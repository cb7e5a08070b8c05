"""What a step with several tasks costs, against the sum of the steps with one of them each.

Whole optimizer steps of the training loop, on batches that are held in memory; all runs take turns in one
process.

    python benchmarks/multitask_step.py --data data/digits
"""

import argparse
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryDirectory

from digits_multitask import CONFIG, METRICS
from measure import comparison, in_turns
from record import write_record
from stages import ROOT, alone
from torch import Tensor

from pipeline.config.load import load_config
from pipeline.interfaces import Batch
from pipeline.modes import set_modes
from pipeline.train.metrics import MetricSums
from pipeline.train.mixing import tasks_of_step
from pipeline.train.reporting import Stopwatch
from pipeline.train.setup import build_run
from pipeline.train.train_step import train_step

CLAIM = (
    "a step that holds three tasks (digit scenes, 32 images of each, 1 thread) over the sum of "
    "those that hold one: at most 1.05"
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="shards of digit scenes")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--record", default=ROOT / "benchmarks/records/multitask_step_cpu.json")
    args = parser.parse_args()

    options = [f"tasks.{task}.data.{split}={args.data}" for task in METRICS for split in ("train", "val")]
    with TemporaryDirectory() as folder:
        runs = {"together": step(CONFIG, [*options, f"output={folder}/together", "balancing.every=1000000"])}
        runs["together, gradients measured in every step"] = step(
            CONFIG, [*options, f"output={folder}/measured", "balancing.every=1"]
        )
        for task in METRICS:
            runs[task] = step(alone(CONFIG, task, Path(folder), options), [f"output={folder}/{task}"])
    seconds = in_turns(runs, args.repeats, warmup=3)
    summed = [sum(turn) for turn in zip(*(seconds[task] for task in METRICS), strict=True)]
    results = [
        comparison(f"seconds of a step: {name}", seconds[name], summed)
        for name in sorted(runs.keys() - METRICS.keys())
    ]
    write_record(args.record, CLAIM, results)


def step(config: str, options: list[str]) -> Callable[[], Tensor]:
    """One call takes one optimizer step; the gradient norm."""
    run = build_run(load_config(ROOT / config, options), "none")
    set_modes(run.engine.module, run.procedure.spec(0).trains)
    streams: dict[str, Iterator[Batch]] = {
        name: repeat(next(iter(stream))) for name, stream in run.streams.items()
    }
    sums, watch = MetricSums(), Stopwatch()

    def one() -> Tensor:
        plan = tasks_of_step(run.resolved, run.progress.step)
        return train_step(run, plan, streams, sums, watch)

    return one


if __name__ == "__main__":
    main()
