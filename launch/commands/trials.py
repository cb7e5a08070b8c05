"""Short trials of a run: fewer steps, few samples, less evaluation."""

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from launch.commands.values import count

if TYPE_CHECKING:
    from pipeline.config.schema import RunConfig, TaskConfig

FLAGS = ("max_steps", "overfit", "limit_val")


def add_trial_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-steps", type=count, metavar="N", help="end after N steps; sets train.max_steps"
    )
    parser.add_argument(
        "--overfit",
        type=count,
        metavar="N",
        help="train each task on its first N samples alone, and evaluate on them: a model that cannot fit "
        "them has a mistake; sets tasks.NAME.data.overfit",
    )
    parser.add_argument(
        "--limit-val",
        type=count,
        metavar="N",
        help="evaluate the first N samples of each task; sets tasks.NAME.data.limit_val",
    )


def trial(config: "RunConfig", args: argparse.Namespace) -> "RunConfig":
    """The run with the limits of the command line."""

    def limited(task: "TaskConfig") -> "TaskConfig":
        limits = {} if args.limit_val is None else {"limit_val": args.limit_val}
        limits |= {} if args.overfit is None or task.frozen else {"overfit": args.overfit}
        return replace(task, data=replace(task.data, **limits))

    tasks = {name: limited(task) for name, task in config.tasks.items()}
    steps = config.train.max_steps if args.max_steps is None else args.max_steps
    return replace(config, tasks=tasks, train=replace(config.train, max_steps=steps))


def trial_words(args: argparse.Namespace) -> list[str]:
    """The limits as words of a command line."""
    given = {name: getattr(args, name) for name in FLAGS}
    return [
        word
        for name, value in given.items()
        if value is not None
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
