"""The points of a sweep and of a board, as options: shares of the MACs, shares of the patches, or
reductions."""

import argparse
from typing import TYPE_CHECKING

from launch.commands.arguments import add_reductions_argument, add_schedules_arguments
from launch.commands.values import fractions

if TYPE_CHECKING:
    from launch.measure.planning import Aims


def add_points_arguments(parser: argparse.ArgumentParser, macs: str) -> None:
    """macs: the shares of the MACs where no point is given."""
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
    add_schedules_arguments(parser)


def aims_of(args: argparse.Namespace) -> "Aims":
    """The points that were given. Raises ConfigError."""
    from launch.measure.planning import Aims
    from launch.saved.run import parse_reduction

    exact = [parse_reduction(text) for text in args.reductions or ()]
    targets = exact or args.merged or args.macs
    return Aims(targets, bool(args.merged), bool(exact), args.within, args.schedules)
