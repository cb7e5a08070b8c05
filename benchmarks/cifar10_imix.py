"""i-Mix against plain contrast, by a linear probe, on CIFAR-10.

Trains a small ViT from chance without labels, twice per seed, on the same two views of each image: by plain
contrast, and by i-Mix. Then each backbone is frozen, and a linear head alone learns the labels. One process
each, two at a time; about an hour and a half on 2 idle cores. A stopped script continues.

    python benchmarks/cifar10_imix.py --train 'data/cifar10/train-{00000..00008}.tar' \\
        --val data/cifar10/val-00000.tar
"""

from record import write_record
from stages import arguments, data_options, scores_of, train_side_by_side, trial

CONFIG, PROBE = "configs/cifar10_vit_imix.py", "configs/cifar10_vit.py"
ARMS = {"contrast": 0.0, "i_mix": 1.0}
"""Name of an arm -> alpha of its shares; 0 mixes nothing."""
PROBES = ["train.mode=heads", "train.eval_every=None", "optim.weight_decay=0.0"]
CLAIM = (
    "CIFAR-10 top-1 (%) of a linear probe on a ViT trained without labels: by i-Mix above plain contrast "
    "of the same views, in the mean of the seeds"
)


def main() -> None:
    args = arguments(__doc__, "cifar10_imix").parse_args()
    common = [*data_options(args, "cifar10"), *trial(args)]
    jobs = {(arm, seed): args.work / f"{arm}_seed{seed}" for seed in args.seeds for arm in ARMS}
    options = [[*common, f"seed={seed}", f"objective.options.alpha={ARMS[arm]}"] for arm, seed in jobs]
    trained = train_side_by_side(CONFIG, list(jobs.values()), options)
    probes = {job: folder.with_name(f"{folder.name}_probe") for job, folder in jobs.items()}
    changes = [
        [*data_options(args, "cifar10"), *PROBES, *trial(args), f"seed={seed}", f"backbone.weights={folder}"]
        for (_, seed), folder in zip(jobs, trained, strict=True)
    ]
    train_side_by_side(PROBE, list(probes.values()), changes)
    found = {
        metric: {
            arm: [round(100 * scores_of(probes[arm, seed], "cifar10")[metric], 2) for seed in args.seeds]
            for arm in ARMS
        }
        for metric in ("top1", "top5")
    }
    results = [{"name": metric, "scores": scores} for metric, scores in found.items()]
    runs = [*jobs.values(), *probes.values()]
    write_record(args.record, CLAIM, results, seeds=args.seeds, runs=runs)


if __name__ == "__main__":
    main()
