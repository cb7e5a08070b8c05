"""MCTF fine-tuned with consistency against ToMe fine-tuned alike: CIFAR-10, the whole ViT trained while it
merges at half of its MACs.

All start from one unmerged ViT (that of cifar10_dtem_vs_tome.py where --work is its folder, else it is
trained) and take the same epochs, batches and learning rates of configs/cifar10_vit_mctf.py, once per seed.
Consistency has two passes in a step. So ToMe is also trained with it, which tells what of a lead is the
objective's.

    python benchmarks/cifar10_mctf_vs_tome.py --train 'data/cifar10/train-{00000..00008}.tar' \\
        --val data/cifar10/val-00000.tar
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from record import write_record
from stages import arguments, data_options, percent, train_on_two_cores, train_side_by_side, trial

from launch.measure.planning import Aims
from launch.measure.points import Point, Sweep
from launch.measure.sweep import sweep
from launch.saved.run import read_run

TASK, HALF = "cifar10", 0.5
TOME = "merging.policy=tome"
WAYS = {
    "mctf": ("mctf", []),
    "tome": ("tome", [TOME, "objective.type=supervised"]),
    "tome with consistency": ("tome", [TOME]),
}
"""Name in the record -> the policy, and what differs from the config."""
CLAIM = (
    "CIFAR-10 top-1 (%) of a ViT that is fine-tuned while it merges, at half of its MACs: MCTF with "
    "consistency above ToMe, from the same start by the same epochs"
)


def main() -> None:
    args = arguments(__doc__, "cifar10_mctf_vs_tome").parse_args()
    data = data_options(args, TASK)
    halves = [*data, *trial(args), f"tasks.{TASK}.data.batch_size=32"]
    backbone = train_on_two_cores("configs/cifar10_vit.py", args.work / "backbone", halves)
    runs = fine_tuned(args, data, backbone)
    folders = [folder for own in runs.values() for folder in own]
    write_record(args.record, CLAIM, results(data, backbone, runs), seeds=args.seeds, runs=folders)


def fine_tuned(args: argparse.Namespace, data: list[str], backbone: Path) -> dict[str, list[Path]]:
    """Name of a way -> its runs, one for each seed."""
    jobs = {
        (name, seed): args.work / f"tuned_{name.replace(' ', '_')}_seed{seed}"
        for seed in args.seeds
        for name in WAYS
    }
    common = [*data, *trial(args), f"backbone.weights={backbone}"]
    options = [[*common, f"seed={seed}", *WAYS[name][1]] for name, seed in jobs]
    train_side_by_side("configs/cifar10_vit_mctf.py", list(jobs.values()), options)
    return {name: [folder for (own, _), folder in jobs.items() if own == name] for name in WAYS}


def results(data: list[str], backbone: Path, runs: Mapping[str, Sequence[Path]]) -> Iterator[dict[str, Any]]:
    """The scores of the start, unmerged and merged as it is, and those of the fine-tuned models."""
    policies = list(dict.fromkeys(policy for policy, _ in WAYS.values()))
    start = measured(data, [backbone], policies)
    yield row("as it is", start, {point.policy: point for point in start.points})
    swept = {name: measured(data, own, [WAYS[name][0]]) for name, own in runs.items()}
    yield row("fine-tuned", start, {name: found.points[0] for name, found in swept.items()})


def measured(data: list[str], folders: Sequence[Path], policies: Sequence[str]) -> Sweep:
    [found] = sweep([read_run(folder, "last", data) for folder in folders], policies, Aims([HALF]), rounds=0)
    return found


def row(name: str, start: Sweep, points: Mapping[str, Point]) -> dict[str, Any]:
    """none: the start, unmerged. reduction and macs_ratio are MCTF's; every one's own are in `policies`."""
    whole = start.whole
    own = {
        way: {"reduction": list(point.schedule), "macs_ratio": round(point.macs / whole.macs, 4)}
        for way, point in points.items()
    }
    scores = {way: percent(point, start.metric) for way, point in points.items()}
    return {
        "name": f"{start.metric}, {name}, {HALF:.0%} of the MACs",
        **own["mctf"],
        "scores": {"none": percent(whole, start.metric), **scores},
        "policies": own,
    }


if __name__ == "__main__":
    main()
