"""DTEM against ToMe, random merging and its own untrained embedding on CIFAR-10, at five points from -30 % to -70 % MACs.

Trains one small ViT from scratch (two DeepSpeed processes), then its merge embeddings once per seed with the backbone frozen, then
sweeps all policies over the validation shards. Finished stages in --work are kept, so a stopped script continues. About an hour
on 2 idle cores.

    python benchmarks/cifar10_dtem_vs_tome.py --train 'data/cifar10/train-{00000..00008}.tar' --val 'data/cifar10/val-00000.tar'
"""

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from measure import ROOT, write_record

from launch.points import Point, Sweep, sweep
from launch.restore import read_run
from launch.sweep_report import print_sweep, write_sweep

POLICIES = ("random", "tome", "dtem_untrained", "dtem")
MACS = (0.7, 0.6, 0.5, 0.4, 0.3)
SCRIPTS = Path(sys.executable).parent
CLAIM = "CIFAR-10 top-1 of a frozen ViT: DTEM above ToMe and above its untrained embedding at every point from -30 % to -70 % MACs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="training shards: folder, brace pattern or URL")
    parser.add_argument("--val", required=True, help="shards to report on")
    parser.add_argument("--work", type=Path, default=Path("runs/cifar10_record"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--record", type=Path, default=ROOT / "benchmarks/records/cifar10_dtem_vs_tome.json")
    args = parser.parse_args()

    data = [f"tasks.cifar10.data.train={args.train}", f"tasks.cifar10.data.val={args.val}"]
    backbone = train_backbone(args.work / "backbone", data)
    with ThreadPoolExecutor(2) as two_cores:
        runs = list(two_cores.map(lambda seed: train_embeddings(args.work / f"dtem_seed{seed}", backbone, seed, data), args.seeds))
    [result] = sweep([read_run(run, "last", data) for run in runs], POLICIES, MACS)
    print_sweep([result])
    print("wrote", *write_sweep([result], args.work / "sweep"))
    write_record(args.record, CLAIM, results_of(result), seeds=args.seeds)


def train_backbone(folder: Path, data: list[str]) -> Path:
    launcher = [str(SCRIPTS / "deepspeed"), "--num_accelerators", "2", "launch/train.py"]
    return train(launcher, "configs/cifar10_vit.py", folder, [*data, "engine.type=deepspeed", "tasks.cifar10.data.batch_size=32"])


def train_embeddings(folder: Path, backbone: Path, seed: int, data: list[str]) -> Path:
    options = [*data, f"seed={seed}", f"backbone.weights={backbone}"]
    return train([str(SCRIPTS / "dtem"), "train"], "configs/cifar10_vit_dtem.py", folder, options)


def train(command: list[str], config: str, folder: Path, options: list[str]) -> Path:
    """The folder of the finished run; a run that was finished before only confirms that."""
    folder = folder.resolve()
    subprocess.run([*command, "--config", config, "--cfg-options", f"output={folder}", *options], cwd=ROOT, check=True)
    return folder


def results_of(result: Sweep) -> list[dict[str, Any]]:
    """One entry per point, with the scores of every policy there, in per cent; one score per seed."""
    whole = percent(result.whole, result.metric)
    return [
        {
            "name": f"{target:.0%} of the MACs",
            "reduction": {point.policy: list(point.schedule) for point in points},
            "macs_ratio": {point.policy: round(point.macs / result.whole.macs, 4) for point in points},
            "scores": {"none": whole} | {point.policy: percent(point, result.metric) for point in points},
        }
        for target in MACS
        if (points := [point for point in result.points if point.target == target])
    ]


def percent(point: Point, metric: str) -> list[float]:
    return [round(100 * score, 2) for score in point.scores[metric]]


if __name__ == "__main__":
    main()
