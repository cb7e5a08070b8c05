"""DivideMix against cross-entropy alone on CIFAR-10, of whose training labels 40 % are wrong.

Makes the labels wrong (symmetric noise), and trains a small ViT from chance twice per seed: by cross-entropy,
and two networks by DivideMix. Both are scored on right labels, in the best and in the last epoch. One process
each, two at a time; about four hours on 2 idle cores. A stopped script continues.

    python benchmarks/cifar10_noisy_labels.py --train 'data/cifar10/train-{00000..00008}.tar' \\
        --val data/cifar10/val-00000.tar
"""

import json
from pathlib import Path

from record import write_record
from stages import arguments, train_side_by_side, trial

from pipeline.data.make.noisy_labels import corrupt_labels
from pipeline.data.shards.label_noise import LabelNoise
from pipeline.data.shards.manifest import MANIFEST

CONFIG = "configs/cifar10_vit_dividemix.py"
NOISE = LabelNoise("symmetric", 0.4, 0)
ARMS = {
    "cross_entropy": [
        *("backbone.peers=1", "step.type=plain", "step.options={'_delete_': True}"),
        "tasks.cifar10.data.views=1",
    ],
    "dividemix": [],
}
"""Name of an arm -> what it changes of the config."""
CLAIM = (
    "CIFAR-10 top-1 (%) of a ViT trained from chance with 40 % of its labels wrong: DivideMix at least 5 "
    "points above cross-entropy, in the best and in the last epoch, in the mean of the seeds"
)


def main() -> None:
    args = arguments(__doc__, "cifar10_noisy_labels").parse_args()
    noisy = (args.work / "noisy").resolve()
    if not (noisy / MANIFEST).exists():
        corrupt_labels(args.train, noisy, NOISE, shard_size=5000, workers=2)
    places = [f"tasks.cifar10.data.train={noisy}", f"tasks.cifar10.data.val={args.val}"]
    common = [*places, *trial(args)]
    jobs = {(arm, seed): args.work / f"{arm}_seed{seed}" for seed in args.seeds for arm in ARMS}
    options = [[*common, f"seed={seed}", *ARMS[arm]] for arm, seed in jobs]
    train_side_by_side(CONFIG, list(jobs.values()), options)
    results = [
        {
            "name": f"{when} epoch",
            "scores": {arm: [top1(jobs[arm, seed])[when] for seed in args.seeds] for arm in ARMS},
        }
        for when in ("best", "last")
    ]
    write_record(args.record, CLAIM, results, seeds=args.seeds, runs=list(jobs.values()))


def top1(run: Path) -> dict[str, float]:
    """Of the best and of the last evaluation of a run, in percent; of two networks that of their mean."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    found = [100 * line["val/cifar10/top1"] for line in lines if "val/cifar10/top1" in line]
    return {"best": round(max(found), 2), "last": round(found[-1], 2)}


if __name__ == "__main__":
    main()
