"""DTEM against ToMe, random merging and its own untrained embedding on CamVid, with 30, 50 and 70 % of the
patches merged.

Trains one small Segmenter from a CIFAR-10 ViT, or from scratch (two DeepSpeed processes), then its merge
embeddings once per seed with all else frozen, then sweeps all policies over the validation shards. A stopped
script continues.

    python benchmarks/camvid_dtem_vs_tome.py --train 'data/camvid/train-{00000..00003}.tar' \\
        --val data/camvid/val-00000.tar --start runs/cifar10_dtem_vs_tome/backbone
"""

import argparse
from pathlib import Path

from stages import (
    add_start,
    add_within,
    arguments,
    data_options,
    modular_stage,
    record_sweep,
    train_on_two_cores,
    trial,
)

MERGED = (0.3, 0.5, 0.7)
CLAIM = (
    "CamVid mIoU (%) of a frozen Segmenter, unmerged by residual: DTEM above ToMe and above its "
    "untrained embedding with 30, 50 and 70 % "
    "of the patches merged in the first {:.0%} of the blocks, and at most 1.0 below the unmerged model "
    "at half"
)


def trained(args: argparse.Namespace) -> tuple[list[Path], list[str]]:
    """The runs of the embeddings, one for each seed, and the options of their data."""
    data = data_options(args, "camvid")
    options = [*data, *trial(args), f"backbone.weights={args.start}", "tasks.camvid.data.batch_size=8"]
    backbone = train_on_two_cores("configs/camvid_segmenter_vit_tiny.py", args.work / "backbone", options)
    return modular_stage(args, "configs/camvid_segmenter_vit_tiny_dtem.py", data, backbone), data


def main() -> None:
    parser = arguments(__doc__, "camvid_dtem_vs_tome")
    add_start(parser)
    add_within(parser)
    args = parser.parse_args()
    runs, data = trained(args)
    name = f"{{}} of the patches merged in {args.within:.0%} of the blocks"
    record_sweep(args, CLAIM.format(args.within), runs, data, MERGED, name, merged=True, within=args.within)


if __name__ == "__main__":
    main()
