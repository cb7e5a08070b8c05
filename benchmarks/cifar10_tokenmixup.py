"""TokenMixup beside cutmix against cutmix alone, on CIFAR-10.

Trains a small ViT from chance by cutmix, three times per seed, on the same images in the same order: by
cutmix alone, with tokens mixed across images too, and also within each image. One process each, two at a
time; about an hour on 2 idle cores. A stopped script continues.

    python benchmarks/cifar10_tokenmixup.py --train 'data/cifar10/train-{00000..00008}.tar' \\
        --val data/cifar10/val-00000.tar
"""

from stages import arguments, record_arms

CONFIG = "configs/cifar10_vit_token_mixup.py"
MIXUP = "tasks.cifar10.head.token_mixup"
ARMS = {
    "cutmix": [f"{MIXUP}=None"],
    "horizontal": [f"{MIXUP}.vertical=None"],
    "horizontal_and_vertical": [],
}
"""Name of an arm -> what it changes of the config."""
CLAIM = (
    "CIFAR-10 top-1 (%) of a ViT trained from chance by cutmix: with TokenMixup, across images and within "
    "them, above cutmix alone, in the mean of the seeds"
)


def main() -> None:
    args = arguments(__doc__, "cifar10_tokenmixup").parse_args()
    record_arms(args, CLAIM, CONFIG, ARMS)


if __name__ == "__main__":
    main()
