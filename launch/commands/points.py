"""The options that a sweep and a board share: whose model is measured, at which points, and how often it is
timed. Points are shares of the MACs, shares of the patches, or reductions."""

import argparse
from typing import TYPE_CHECKING

from launch.commands.arguments import (
    add_reductions_argument,
    add_run_arguments,
    add_split_argument,
    add_tasks_argument,
)
from launch.commands.published import add_signal_argument, add_source_arguments
from launch.commands.values import fractions, names

if TYPE_CHECKING:
    from launch.measure.planning import Aims


def add_subject_arguments(parser: argparse.ArgumentParser) -> None:
    """Runs, or a published model with its pictures, and which tasks."""
    add_run_arguments(parser, several=True)
    add_source_arguments(parser)
    add_signal_argument(parser)
    add_tasks_argument(parser)


def add_points_arguments(parser: argparse.ArgumentParser, macs: str) -> None:
    """The points, the split that is measured, and the timed rounds. macs: the shares of the MACs where no
    point is given."""
    targets = parser.add_mutually_exclusive_group()
    targets.add_argument(
        "--macs",
        type=fractions,
        default=fractions(macs),
        metavar="F,F",
        help=f"shares of the encoder's unmerged MACs (default {macs})",
    )
    targets.add_argument(
        "--merged",
        type=fractions,
        metavar="F,F",
        help="shares of the patches merged after the last block instead",
    )
    add_reductions_argument(targets, "default: shares of the MACs instead")
    parser.add_argument(
        "--within",
        type=float,
        default=1.0,
        metavar="F",
        help="with even schedules: the share of the blocks, from the first, that merge (default 1)",
    )
    _add_schedules(parser)
    add_split_argument(parser)
    parser.add_argument(
        "--rounds",
        type=int,
        default=5,
        metavar="N",
        help="timed rounds per policy and point; 0 leaves speed out (default 5)",
    )


def _add_schedules(parser: argparse.ArgumentParser) -> None:
    """How schedules reach a share, as `schedules`, and on what `solved` and `learned` ones are found, as
    `launch.measure.solving.Solving` takes it."""
    parser.add_argument(
        "--schedule",
        dest="schedules",
        type=names,
        default=["even"],
        metavar="NAME,NAME",
        help="with shares, one or several: even (default), in which all blocks merge; early, the first half "
        "of them; solved, which spends the MACs where merges are measured to change the predictions least; "
        "learned, by gradients of the same",
    )
    parser.add_argument(
        "--solve-on",
        metavar="SHARDS",
        help="images that these schedules are found on, without labels (default: a run's training shards; "
        "without labels a part of --data, which is then not reported on)",
    )
    parser.add_argument(
        "--solve-images", type=int, default=64, metavar="N", help="about so many of them (default 64)"
    )


def add_out_argument(parser: argparse.ArgumentParser, what: str) -> None:
    """Where the results of a command go. what: the name of the folder."""
    parser.add_argument(
        "--out", metavar="FOLDER", help=f"default: RUN/{what} of the first run, published/NAME/{what}"
    )


def aims_of(args: argparse.Namespace) -> "Aims":
    """The points that were given. Raises ConfigError, also for a wrong number of rounds."""
    from launch.measure.planning import Aims, check_rounds
    from launch.saved.reductions import parse_reduction

    check_rounds(args.rounds)
    exact = [parse_reduction(text) for text in args.reductions or ()]
    targets = exact or args.merged or args.macs
    return Aims(targets, bool(args.merged), bool(exact), args.within, args.schedules)
