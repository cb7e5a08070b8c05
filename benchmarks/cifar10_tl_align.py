"""Labels that follow the tokens of mixed images (TL-Align) against labels by area, on CIFAR-10.

Trains a small ViT from chance by cutmix of whole patches, twice per seed, on the same images in the same
order: the labels alone differ. One process each, two at a time; about 40 minutes on 2 idle cores. A stopped
script continues.

    python benchmarks/cifar10_tl_align.py --train 'data/cifar10/train-{00000..00008}.tar' \\
        --val data/cifar10/val-00000.tar
"""

from record import write_record
from stages import arguments, data_options, scores_of, train_side_by_side, trial

CONFIG = "configs/cifar10_vit_tl_align.py"
LABELS = "tasks.cifar10.data.augment.mix_labels"
ARMS = {"cutmix": "patches", "tl_align": "tokens"}
"""Name of an arm -> what its labels say."""
CLAIM = (
    "CIFAR-10 top-1 (%) of a ViT trained from chance by cutmix of whole patches: labels that follow the "
    "tokens (TL-Align) above labels by area, in the mean of the seeds"
)


def main() -> None:
    args = arguments(__doc__, "cifar10_tl_align").parse_args()
    common = [*data_options(args, "cifar10"), *trial(args)]
    jobs = {(arm, seed): args.work / f"{arm}_seed{seed}" for seed in args.seeds for arm in ARMS}
    options = [[*common, f"seed={seed}", f"{LABELS}={ARMS[arm]}"] for arm, seed in jobs]
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
