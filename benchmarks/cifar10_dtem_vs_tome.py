"""DTEM against ToMe, random merging and its own untrained embedding on CIFAR-10, at five points from -30 % to
-70 % MACs.

Trains one small ViT from scratch (two DeepSpeed processes), then its merge embeddings once per seed with the
backbone frozen, then sweeps all policies over the validation shards. Estimated at twenty minutes on 2 idle
cores (its stages were timed apart); a stopped script continues.

    python benchmarks/cifar10_dtem_vs_tome.py --train 'data/cifar10/train-{00000..00008}.tar' \\
        --val data/cifar10/val-00000.tar
"""

import argparse
from pathlib import Path

from stages import arguments, data_options, modular_stage, record_sweep, train_on_two_cores, trial

MACS = (0.7, 0.6, 0.5, 0.4, 0.3)
CLAIM = (
    "CIFAR-10 top-1 (%) of a frozen ViT: DTEM above ToMe and above its untrained embedding at "
    "every point from -30 % to -70 % MACs"
)


def trained(args: argparse.Namespace) -> tuple[list[Path], list[str]]:
    """The runs of the embeddings, one for each seed, and the options of their data."""
    data = data_options(args, "cifar10")
    options = [*data, *trial(args), "tasks.cifar10.data.batch_size=32"]
    backbone = train_on_two_cores("configs/cifar10_vit.py", args.work / "backbone", options)
    return modular_stage(args, "configs/cifar10_vit_dtem.py", data, backbone), data


def main() -> None:
    args = arguments(__doc__, "cifar10_dtem_vs_tome").parse_args()
    runs, data = trained(args)
    record_sweep(args, CLAIM, runs, data, MACS, "{} of the MACs")


if __name__ == "__main__":
    main()
