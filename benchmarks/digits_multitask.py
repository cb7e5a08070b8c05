"""Three tasks on one ViT against each task alone, on digit scenes: the same steps, and so the same number of
a task's own samples.

Trains configs/digits_multitask.py and its tasks one by one, per seed, one process each and two at a time, and
scores them on the validation shards. A stopped script continues.

    python benchmarks/digits_multitask.py --train data/digits --val data/digits
"""

from collections.abc import Sequence
from pathlib import Path

from measure import ratio, summary
from record import write_record
from stages import alone, arguments, data_options, scores_of, train_side_by_side, trial

CONFIG = "configs/digits_multitask.py"
METRICS = {"digits": "top1", "digits_captioning": "CIDEr", "digits_segmentation": "mIoU"}
CLAIM = (
    "a task trained with two others scores at most 2 points (top-1, mIoU) or 2 % (CIDEr) less than "
    "alone with the same number of its own "
    "samples (digit scenes; ours: together, peer: alone, times 100, one pair per seed)"
)


def main() -> None:
    args = arguments(__doc__, "digits_multitask").parse_args()
    data = data_options(args, *METRICS)
    configs, folders, options = [], [], []
    for seed in args.seeds:
        for task in (None, *METRICS):
            configs.append(CONFIG if task is None else alone(CONFIG, task, args.work, data))
            folders.append(args.work / f"{task or 'together'}_seed{seed}")
            options.append([*(data if task is None else []), *trial(args), f"seed={seed}"])
    train_side_by_side(configs, folders, options)
    results = [_result(task, metric, args.work, args.seeds) for task, metric in METRICS.items()]
    write_record(args.record, CLAIM, results, seeds=args.seeds, runs=folders)


def _result(task: str, metric: str, work: Path, seeds: Sequence[int]) -> dict:
    together = [100 * scores_of(work / f"together_seed{seed}", task)[metric] for seed in seeds]
    single = [100 * scores_of(work / f"{task}_seed{seed}", task)[metric] for seed in seeds]
    name = f"{task}: {metric} together over alone"
    scores = {
        "together": [round(value, 2) for value in together],
        "alone": [round(value, 2) for value in single],
    }
    over = {"ratio": ratio(together, single)} if all(single) else {}  # a captioner of few steps scores 0
    return {"name": name, "ours": summary(together), "peer": summary(single), **over, "scores": scores}


if __name__ == "__main__":
    main()
