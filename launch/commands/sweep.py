"""`dtem sweep`: merge policies at several reductions on one trained backbone: scores, MACs, tokens and speed,
as table and plot."""

import argparse

from launch.commands.arguments import (
    NEEDS,
    HelpFormatter,
    add_reductions_argument,
    add_run_arguments,
    add_schedules_arguments,
    add_signal_argument,
    add_source_arguments,
    add_split_argument,
    add_tasks_argument,
)
from launch.commands.values import fractions, names

EXAMPLE = r"""examples:
  dtem sweep runs/digits_multitask_dtem
  dtem sweep runs/seed0 runs/seed1 runs/seed2 --policy tome,dtem_untrained,dtem --macs 0.7,0.5,0.3 \
      --out runs/sweep
  dtem sweep runs/camvid --merged 0.3,0.5,0.7 --rounds 3
  dtem sweep runs/camvid --policy tome,dtem --schedule even,early,solved --macs 0.7,0.5,0.35
  dtem sweep runs/digits_multitask_dtem --task digits,digits_captioning --macs 0.7,0.5
  dtem sweep timm:deit_small_patch16_224.fb_in1k --data data/imagenet --adapter adapters/deit_small
  torchrun --nproc_per_node 8 -m dtem sweep runs/imagenet
"""
POLICIES = "random,tome,dtem_untrained,dtem"
MACS = "0.7,0.6,0.5,0.4,0.3"


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "sweep",
        help="scores against compute, for policies x reductions",
        description=f"{__doc__} Several runs (seeds of one setup) give a spread.",
        epilog=EXAMPLE + NEEDS,
        formatter_class=HelpFormatter,
    )
    add_run_arguments(parser, several=True)
    add_source_arguments(parser)
    add_signal_argument(parser)
    add_tasks_argument(parser)
    parser.add_argument(
        "--policy",
        dest="policies",
        type=names,
        metavar="NAME,NAME",
        help=f"default {POLICIES}, of a published model without --adapter those that need none; the unmerged "
        "model is always there",
    )
    targets = parser.add_mutually_exclusive_group()
    targets.add_argument(
        "--macs",
        type=fractions,
        default=fractions(MACS),
        metavar="F,F",
        help=f"shares of the encoder's unmerged MACs (default {MACS})",
    )
    targets.add_argument(
        "--merged",
        type=fractions,
        metavar="F,F",
        help="shares of the patches merged after the last block instead",
    )
    parser.add_argument(
        "--within",
        type=float,
        default=1.0,
        metavar="F",
        help="with even schedules: the share of the blocks, from the first, that merge (default 1)",
    )
    add_reductions_argument(targets, "default: shares of the MACs instead")
    add_schedules_arguments(parser)
    add_split_argument(parser)
    parser.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="of embeddings that are drawn anew, and of the images to solve on (default: each run's seed)",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=5,
        metavar="N",
        help="timed rounds per model; 0 leaves speed out (default 5)",
    )
    parser.add_argument(
        "--out", metavar="DIR", help="default: RUN/sweep of the first run, published/NAME/sweep"
    )


def run(args: argparse.Namespace) -> int:
    """0 when table and plot are written. Raises PipelineError."""
    from pathlib import Path

    from launch.measure.sweep import sweep
    from launch.published.sources import folder_for, has_labels, labelled_run, published_of, solving_of
    from launch.report.sweep_files import print_sweep, write_sweep
    from launch.saved.run import parse_reduction, read_run
    from pipeline.engine import launched
    from pipeline.files import folder_within

    published = published_of(args)
    policies = args.policies or policies_for(args, published)
    if published and not has_labels(args.data, published, args.weights):
        return _of_agreement(args, published, policies)
    runs = (
        [labelled_run(args, published)]
        if published
        else [read_run(path, args.checkpoint, args.cfg_options) for path in args.run]
    )
    folder = Path(args.out) if args.out else folder_for(published, "sweep") if published else None
    if launched.rank() == 0:  # to fail here, not after the measurement
        folder = folder or folder_within(runs[0].root, "sweep")
        folder.mkdir(parents=True, exist_ok=True)
    exact = [parse_reduction(text) for text in args.reductions or ()]
    results = sweep(
        runs,
        policies,
        exact or args.merged or args.macs,
        merged=bool(args.merged),
        exact=bool(exact),
        within=args.within,
        schedules=args.schedules,
        solving=solving_of(args, runs[0].config.seed),
        split=args.split,
        seed=args.seed,
        rounds=args.rounds,
        tasks=args.tasks,
    )
    if folder is not None and results:  # on rank 0
        print_sweep(results)
        print("wrote " + ", ".join(str(path) for path in write_sweep(results, folder)))
    return 0


def policies_for(args: argparse.Namespace, published: str | None) -> list[str]:
    """The policies of a sweep that names none: those that can be had."""
    usual = names(POLICIES)
    return usual if published is None or args.adapter else [name for name in usual if name != "dtem"]


def _of_agreement(args: argparse.Namespace, published: str, policies: list[str]) -> int:
    """The sweep of a published model on pictures without labels."""
    from pathlib import Path

    from launch.published.sources import agreement_on, folder_for
    from launch.report.sweep_files import print_sweep, write_sweep
    from pipeline.engine import launched
    from pipeline.errors import ConfigError

    if args.reductions or args.merged or args.tasks or args.within != 1:
        raise ConfigError(
            f"{args.data} has no labels, so agreement with the unmerged model is measured, at shares of its "
            "MACs: leave --reduction, --merged, --within and --task out"
        )
    folder = Path(args.out) if args.out else folder_for(published, "sweep")
    if launched.rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
    result = agreement_on(args, published, policies)
    if result is not None:  # on rank 0
        print_sweep([result])
        print("wrote " + ", ".join(str(path) for path in write_sweep([result], folder)))
    return 0
