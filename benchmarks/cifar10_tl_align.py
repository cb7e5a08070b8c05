"""Labels that follow the tokens of mixed images (TL-Align) against labels by area, on CIFAR-10.

Trains a small ViT from chance by cutmix of whole patches, twice per seed, on the same images in the same
order: the labels alone differ. One process each, two at a time; about 40 minutes on 2 idle cores. A stopped
script continues.

    python benchmarks/cifar10_tl_align.py --train 'data/cifar10/train-{00000..00008}.tar' \\
        --val data/cifar10/val-00000.tar
"""

from stages import arguments, record_arms

CONFIG = "configs/cifar10_vit_tl_align.py"
LABELS = "tasks.cifar10.data.augment.mix_labels"
ARMS = {"cutmix": [f"{LABELS}=patches"], "tl_align": [f"{LABELS}=tokens"]}
"""Name of an arm -> what it changes of the config."""
CLAIM = (
    "CIFAR-10 top-1 (%) of a ViT trained from chance by cutmix of whole patches: labels that follow the "
    "tokens (TL-Align) above labels by area, in the mean of the seeds"
)


def main() -> None:
    args = arguments(__doc__, "cifar10_tl_align").parse_args()
    record_arms(args, CLAIM, CONFIG, ARMS)


if __name__ == "__main__":
    main()
