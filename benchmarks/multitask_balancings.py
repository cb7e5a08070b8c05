"""The balancings of several tasks against one another: the geometric mean of the tasks' main metrics of one
small ViT, on the same samples in the same order.

Trains configs/digits_multitask.py or configs/cifar_multitask.py once for each balancing and seed, one process
each and two at a time, and scores them on the validation shards. Every step has two micro-batches of each
task, of half the config's size, which `meltr` needs. A stopped script continues. On 2 idle cores digits take
about an hour and a half, CIFAR a day.

    python benchmarks/multitask_balancings.py digits_multitask --train data/digits --val data/digits
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from record import ROOT, write_record
from stages import arguments, data_options, scores_of, train_side_by_side, trial

from pipeline.balancing import BALANCING
from pipeline.config.load import load_config

METRICS = {
    "digits_multitask": {"digits": "top1", "digits_captioning": "CIDEr", "digits_segmentation": "mIoU"},
    "cifar_multitask": {"cifar10": "top1", "scenes_captioning": "CIDEr", "camvid": "mIoU"},
}
"""Config -> the main metric of each task."""
CLAIM = (
    "{}: the geometric mean of three tasks' main metrics (top-1, CIDEr, mIoU; times 100) under meltr at or "
    "above the best of the other balancings, in the mean of the seeds"
)


def main() -> None:
    parser = arguments(__doc__, "multitask_balancings")
    parser.add_argument("config", choices=METRICS)
    parser.add_argument(
        "--shards",
        nargs="+",
        default=[],
        metavar="TASK.SPLIT=PATH",
        help="shards of a task that --train and --val do not hold, such as camvid.train=data/camvid",
    )
    parser.add_argument(
        "--balancings", nargs="+", choices=BALANCING.names(), default=BALANCING.names(), help="by default all"
    )
    args = parser.parse_args()
    config, metrics = f"configs/{args.config}.py", METRICS[args.config]
    own = [f"tasks.{task}.data.{rest}" for task, _, rest in (each.partition(".") for each in args.shards)]
    common = [*data_options(args, *metrics), *own, *halves(config, list(metrics)), *trial(args)]
    folders = {
        (kind, seed): args.work / f"{args.config}_{kind}_seed{seed}"
        for seed in args.seeds
        for kind in args.balancings
    }
    options = [[*common, f"balancing.type={kind}", f"seed={seed}"] for kind, seed in folders]
    train_side_by_side(config, list(folders.values()), options)
    results = results_of(folders, args.balancings, args.seeds, metrics)
    runs = list(folders.values())
    write_record(args.record, CLAIM.format(args.config), results, seeds=args.seeds, runs=runs)


def halves(config: str, tasks: Sequence[str]) -> list[str]:
    """Options by which a step has its samples in two micro-batches of each task."""
    sizes = {task: load_config(ROOT / config).tasks[task].data.batch_size for task in tasks}
    return [
        "engine.accumulation=2",
        *(f"tasks.{task}.data.batch_size={size // 2}" for task, size in sizes.items()),
    ]


def results_of(
    folders: Mapping[tuple[str, int], Path],
    kinds: Sequence[str],
    seeds: Sequence[int],
    metrics: Mapping[str, str],
) -> list[dict]:
    """The geometric mean and each metric, times 100: one score for each seed under each balancing."""
    found = {
        run: [scores_of(folder, task)[metric] for task, metric in metrics.items()]
        for run, folder in folders.items()
    }
    rows = {"geometric mean": {run: geometric_mean(scores) for run, scores in found.items()}}
    for i, (task, metric) in enumerate(metrics.items()):
        rows[f"{task}: {metric}"] = {run: scores[i] for run, scores in found.items()}
    return [
        {
            "name": name,
            "scores": {kind: [round(100 * values[kind, seed], 2) for seed in seeds] for kind in kinds},
        }
        for name, values in rows.items()
    ]


def geometric_mean(scores: Sequence[float]) -> float:
    return math.prod(scores) ** (1 / len(scores))


if __name__ == "__main__":
    main()
