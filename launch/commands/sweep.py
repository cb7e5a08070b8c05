"""`dtem sweep`: merge policies at several reductions on one trained backbone: scores, MACs, tokens and speed,
as table and plot."""

import argparse

from launch.commands.arguments import NEEDS, HelpFormatter
from launch.commands.points import add_out_argument, add_points_arguments, add_subject_arguments, aims_of
from launch.commands.values import names

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
    add_subject_arguments(parser)
    parser.add_argument(
        "--policy",
        dest="policies",
        type=names,
        metavar="NAME,NAME",
        help=f"default {POLICIES}, of a published model without --adapter those that need none; the unmerged "
        "model is always there",
    )
    add_points_arguments(parser, MACS)
    parser.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="of what is drawn: untrained embeddings and the images to solve on (default: each run's seed), "
        "random merges",
    )
    add_out_argument(parser, "sweep")


def run(args: argparse.Namespace) -> int:
    """0 when table and plot are written. Raises PipelineError."""
    from launch.published.measured import measured_on, result_folder, runs_named
    from launch.published.sources import published_of
    from launch.report.sweep_files import print_sweep, write_sweep

    published, aims = published_of(args), aims_of(args)
    runs = runs_named(args, published)
    folder = result_folder(args, published, runs, "sweep")
    policies = args.policies or policies_for(args, published)
    seeds = None if args.seed is None else [args.seed]
    results = measured_on(args, published, runs, policies, aims, seeds=seeds)
    if folder is not None and results:  # on rank 0
        print_sweep(results)
        print("wrote " + ", ".join(str(path) for path in write_sweep(results, folder)))
    return 0


def policies_for(args: argparse.Namespace, published: str | None) -> list[str]:
    """The policies of a sweep that names none: those that can be had."""
    usual = names(POLICIES)
    return usual if published is None or args.adapter else [name for name in usual if name != "dtem"]
