"""`dtem board`: every merge policy on the same weights and the same images: scores, divergence from the
unmerged model, MACs, speed and memory, as table, plot and one HTML page, with the protocol.
"""

import argparse

from launch.commands.arguments import NEEDS, HelpFormatter
from launch.commands.points import add_out_argument, add_points_arguments, add_subject_arguments, aims_of
from launch.commands.values import names, numbers

EXAMPLE = r"""examples:
  dtem board runs/digits_multitask_dtem --task digits
  dtem board runs/seed0 runs/seed1 runs/seed2 --policies all --merged 0.3,0.5,0.7 --out runs/board
  dtem board runs/imagenet --policies random,tome,dtem_untrained,dtem --set tasks.imagenet.data.limit_val=5000
  dtem board timm:deit_small_patch16_224.fb_in1k --data data/imagenet --adapter adapters/deit_small
  dtem board timm:vit_base_patch14_dinov2 --data photos --signal patches
"""
MACS = "0.7,0.5,0.3"
SEEDS = "0,1,2"


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "board",
        help="every merge policy on the same weights and images",
        description=f"{__doc__}A policy that cannot serve the model is named with the reason.",
        epilog=EXAMPLE + NEEDS,
        formatter_class=HelpFormatter,
    )
    add_subject_arguments(parser)
    parser.add_argument(
        "--policies",
        "--policy",
        type=names,
        default=["all"],
        metavar="all|NAME,NAME",
        help="all (default): every one that there is, with the untrained one of each that learns;\n"
        "or these; the unmerged model is always there",
    )
    add_points_arguments(parser, MACS)
    parser.add_argument(
        "--seeds",
        dest="draws",
        type=numbers,
        default=numbers(SEEDS),
        metavar="N,N",
        help=f"of what is drawn: untrained embeddings, random merges (default {SEEDS})",
    )
    add_out_argument(parser, "board")


def run(args: argparse.Namespace) -> int:
    """0 when the board is written. Raises PipelineError."""
    from launch.board.files import text_of, write_board
    from launch.board.policies import asked_policies, check_same_weights
    from launch.published.measured import measured_on, result_folder, runs_named
    from launch.published.sources import published_of
    from pipeline.errors import ConfigError

    published, aims, policies = published_of(args), aims_of(args), asked_policies(args.policies)
    if len(set(args.draws)) < len(args.draws):
        raise ConfigError(f"--seeds {','.join(map(str, args.draws))} names a seed twice")
    runs = runs_named(args, published)
    if runs:
        check_same_weights(runs)
    folder = result_folder(args, published, runs, "board")
    results = measured_on(
        args, published, runs, policies, aims, seeds=args.draws, compared=True, lenient=True
    )
    if folder is not None and results:  # on rank 0
        print(*(f"\n{text_of(result)}" for result in results), sep="\n")
        print("wrote " + ", ".join(str(path) for path in write_board(results, folder)))
    return 0
