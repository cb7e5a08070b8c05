"""Every merge policy on one board: on the same frozen weights and the same images, with 30, 50 and 70 % of
the MACs saved (CIFAR-10), or of the patches merged (CamVid, and the saliency map of a pretrained ViT-S/14).

Controls, training-free policies and trained ones are told apart; what is drawn or taught is so with each
seed. The models are those of `SET_dtem_vs_tome.py`, whose --work is given: what is there is taken, what is
not is trained. The board is written to WORK/board too, as `dtem board` writes it.

    python benchmarks/board.py cifar10 --train 'data/cifar10/train-{00000..00008}.tar' \\
        --val data/cifar10/val-00000.tar
    python benchmarks/board.py camvid --train 'data/camvid/train-{00000..00003}.tar' \\
        --val data/camvid/val-00000.tar --start runs/cifar10_dtem_vs_tome/backbone
    python benchmarks/board.py vit_small_saliency --weights data/vit_small_saliency/model.safetensors \\
        --train 'data/camvid/train-{00000..00003}.tar' --val data/camvid/val-00000.tar
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import camvid_dtem_vs_tome as camvid
import cifar10_dtem_vs_tome as cifar10
import saliency
from record import ROOT, write_record
from stages import add_start, add_within, arguments, point_row, shown

from launch.board.files import text_of, write_board
from launch.board.policies import ALL, asked_policies
from launch.commands.values import names
from launch.measure.planning import Aims
from launch.measure.points import DIVERGENCE, Point, Sweep, Target
from launch.measure.sweep import sweep
from launch.saved.policy_names import kind_of
from launch.saved.run import read_run

SETS = ("cifar10", "camvid", "vit_small_saliency")
MACS, MERGED = (0.7, 0.5, 0.3), (0.3, 0.5, 0.7)
CLAIM = {
    "cifar10": "CIFAR-10 top-1 (%) of a frozen ViT under every merge policy, at -30, -50 and -70 % MACs",
    "camvid": "CamVid mIoU (%) of a frozen Segmenter under every merge policy, with 30, 50 and 70 % of the "
    "patches merged",
    "vit_small_saliency": "agreement (%) and divergence (nats) of a pretrained ViT-S/14's saliency map from "
    "that of the unmerged model under every merge policy, with 30, 50 and 70 % of the patches merged",
}


def main() -> None:
    args = _arguments()
    rounds, runs = 5 if args.steps is None else 1, []
    how: dict[str, Any] = {"rounds": rounds, "compared": True}
    policies = asked_policies(args.policies)
    if args.set == "vit_small_saliency":
        targets, name = shown(args, MERGED), "{} of the patches merged in all blocks"
        result = saliency.measured(args, policies, targets, **how)
    else:
        of_macs = args.set == "cifar10"
        runs, data = (cifar10 if of_macs else camvid).trained(args)
        targets = shown(args, MACS if of_macs else MERGED)
        within = 1.0 if of_macs else args.within
        of_patches = f"{{}} of the patches merged in {within:.0%} of the blocks"
        name = "{} of the MACs" if of_macs else of_patches
        how |= {"seeds": args.seeds, "lenient": True}
        aims = Aims(targets, merged=not of_macs, within=within)
        (result,) = sweep([read_run(run, "last", data) for run in runs], policies, aims, **how)
    print(text_of(result))
    print("wrote", *write_board([result], args.work / "board"))
    write_record(args.record, CLAIM[args.set], _rows(result, targets, name), seeds=args.seeds, runs=runs)


def _arguments() -> argparse.Namespace:
    parser = arguments(__doc__, "board")
    parser.add_argument("set", choices=SETS, metavar="SET", help=", ".join(SETS))
    parser.add_argument("--weights", type=Path, help="of vit_small_saliency: file of ViT and decoder")
    parser.add_argument(
        "--policies", type=names, default=[ALL], metavar="NAME,NAME", help="default: all; a record has all"
    )
    add_start(parser)
    add_within(parser)
    parser.set_defaults(work=None, record=None)
    args = parser.parse_args()
    if (args.weights is None) == (args.set == "vit_small_saliency"):
        parser.error("--weights goes with vit_small_saliency, which needs it")
    args.work = args.work or Path("runs") / f"{args.set}_dtem_vs_tome"
    args.record = args.record or ROOT / f"benchmarks/records/board_{args.set}.json"
    return args


def _rows(result: Sweep, targets: Sequence[Target], name: str) -> list[dict[str, Any]]:
    """A result for each point: as those of `record_sweep`, with kinds, divergences, speed and memory."""
    rows = []
    for target in targets:
        points = [point for point in result.points if point.target == target]
        if points:
            every = [result.whole, *points]
            rows.append(
                point_row(result, target, name, result.metric)
                | {
                    "kinds": {point.policy: kind_of(point.policy) for point in points},
                    DIVERGENCE: {point.policy: point.scores[DIVERGENCE] for point in points},
                    "images_per_s": {point.policy: _speed(point) for point in every},
                    "peak_mib": {point.policy: round(point.peak_mib or 0.0, 1) for point in every},
                    "left_out": {
                        own.policy: own.reason.replace(f"{ROOT}/", "")
                        for own in result.left_out
                        if own.target in (None, target)
                    },
                }
            )
    return rows


def _speed(point: Point) -> dict[str, float]:
    speeds = point.images_per_s
    return {
        "median": round(median(speeds), 2),
        "min": round(min(speeds), 2),
        "max": round(max(speeds), 2),
        "n": len(speeds),
    }


if __name__ == "__main__":
    main()
