"""TokenMixup beside cutmix against cutmix alone, on CIFAR-10.

Trains a small ViT from chance by cutmix, three times per seed, on the same images in the same order: by
cutmix alone, with tokens mixed across images too, and also within each image. One process each, two at a
time; about an hour on 2 idle cores. A stopped script continues.

    python benchmarks/cifar10_tokenmixup.py --train 'data/cifar10/train-{00000..00008}.tar' \\
        --val data/cifar10/val-00000.tar
"""

from record import write_record
from stages import arguments, data_options, scores_of, train_side_by_side, trial

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
    common = [*data_options(args, "cifar10"), *trial(args)]
    jobs = {(arm, seed): args.work / f"{arm}_seed{seed}" for seed in args.seeds for arm in ARMS}
    options = [[*common, f"seed={seed}", *ARMS[arm]] for arm, seed in jobs]
    train_side_by_side(CONFIG, list(jobs.values()), options)
    found = {
        metric: {
            arm: [round(100 * scores_of(jobs[arm, seed], "cifar10")[metric], 2) for seed in args.seeds]
            for arm in ARMS
        }
        for metric in ("top1", "top5")
    }
    results = [{"name": metric, "scores": scores} for metric, scores in found.items()]
    write_record(args.record, CLAIM, results, seeds=args.seeds, runs=list(jobs.values()))


if __name__ == "__main__":
    main()
