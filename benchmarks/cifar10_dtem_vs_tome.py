"""DTEM against ToMe, random merging and its own untrained embedding on CIFAR-10, at five points from -30 % to -70 % MACs.

Trains one small ViT from scratch (two DeepSpeed processes), then its merge embeddings once per seed with the backbone frozen, then
sweeps all policies over the validation shards. Estimated at twenty
minutes on 2 idle cores (its stages were timed apart); a stopped script continues.

    python benchmarks/cifar10_dtem_vs_tome.py --train 'data/cifar10/train-{00000..00008}.tar' --val 'data/cifar10/val-00000.tar'
"""

from typing import Any

from cifar10_stages import arguments, data_options, percent, train_backbone, train_embeddings
from measure import write_record

from launch.points import Sweep, sweep
from launch.restore import read_run
from launch.sweep_report import print_sweep, write_sweep

POLICIES = ("random", "tome", "dtem_untrained", "dtem")
MACS = (0.7, 0.6, 0.5, 0.4, 0.3)
CLAIM = "CIFAR-10 top-1 (%) of a frozen ViT: DTEM above ToMe and above its untrained embedding at every point from -30 % to -70 % MACs"


def main() -> None:
    args = arguments(__doc__, "cifar10_dtem_vs_tome.json").parse_args()
    data = data_options(args)
    backbone = train_backbone(args.work / "backbone", data)
    folders = [args.work / f"dtem_seed{seed}" for seed in args.seeds]
    runs = train_embeddings(folders, backbone, [[*data, f"seed={seed}"] for seed in args.seeds])
    [result] = sweep([read_run(run, "last", data) for run in runs], POLICIES, MACS)
    print_sweep([result])
    print("wrote", *write_sweep([result], args.work / "sweep"))
    write_record(args.record, CLAIM, results_of(result), seeds=args.seeds)


def results_of(result: Sweep) -> list[dict[str, Any]]:
    """One entry per point, with the scores of every policy there; random and ToMe have nothing to draw per seed.

    reduction and macs_ratio are DTEM's, which pays for its embedding; every policy's own are in `policies`.
    """
    whole = percent(result.whole, result.metric)
    results = []
    for target in MACS:
        points = {point.policy: point for point in result.points if point.target == target}
        own = {
            policy: {"reduction": list(point.schedule), "macs_ratio": round(point.macs / result.whole.macs, 4)}
            for policy, point in points.items()
        }
        scores = {"none": whole} | {policy: percent(point, result.metric) for policy, point in points.items()}
        results.append({"name": f"{target:.0%} of the MACs", **own["dtem"], "scores": scores, "policies": own})
    return results


if __name__ == "__main__":
    main()
