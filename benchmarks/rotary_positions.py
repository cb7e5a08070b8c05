"""The position of a merged token in a ViT with rotary positions: mean rotation against the destination's, the
mean coordinate and virtual unmerging, with ToMe's matching, at equal MACs.

Trains a small ViT with DINOv3's kind of positions on CIFAR-10, once per seed (twelve minutes each on 2 idle
cores), then evaluates it under each rule, without learning anything. A stopped script continues.

    python benchmarks/rotary_positions.py --train 'data/cifar10/train-{00000..00008}.tar' \\
        --val data/cifar10/val-00000.tar
"""

from typing import Any

from record import write_record
from stages import arguments, data_options, percent, shown, train_on_two_cores, trial

from launch.measure.planning import Aims
from launch.measure.points import Sweep
from launch.measure.sweep import sweep
from launch.saved.run import read_run

MACS = (0.7, 0.6, 0.5, 0.4, 0.3)
RULES = {
    "mean_rotation": [],
    "mean_rotation with bias": ["merging.rotary_bias=True"],
    "destination": ["merging.rotary=destination"],
    "mean_coordinate": ["merging.rotary=mean_coordinate"],
    "virtual_unmerging": ["merging.rotary=virtual_unmerging"],
}
"""Rule -> its settings."""
CLAIM = (
    "CIFAR-10 top-1 (%) of a ViT with rotary positions, merged by ToMe's matching without learning: mean "
    "rotation at or above the destination's position, the mean coordinate and virtual unmerging at every "
    "point from -30 % to -70 % MACs that each reaches"
)


def main() -> None:
    args = arguments(__doc__, "rotary_positions").parse_args()
    data = data_options(args, "cifar10")
    runs = [
        train_on_two_cores(
            "configs/cifar10_rope_vit.py",
            args.work / f"backbone_seed{seed}",
            [*data, *trial(args), "tasks.cifar10.data.batch_size=32", f"seed={seed}"],
        )
        for seed in args.seeds
    ]
    targets = shown(args, MACS)
    found = {}
    for rule, settings in RULES.items():
        setups = [read_run(run, "last", [*data, *settings]) for run in runs]
        (found[rule],) = sweep(setups, ["tome"], Aims(targets), rounds=0)
    write_record(
        args.record, CLAIM, [_point(found, target) for target in targets], seeds=args.seeds, runs=runs
    )


def _point(found: dict[str, Sweep], target: float) -> dict[str, Any]:
    """The scores of every rule at one point, each with its own reduction: virtual unmerging attends to all
    patches, and merges more for the same MACs. A rule that cannot reach the point is left out."""
    whole = next(iter(found.values())).whole
    scores: dict[str, Any] = {"none": percent(whole, "top1")}
    policies: dict[str, Any] = {}
    for rule, result in found.items():
        for point in result.points:
            if point.target == target:
                scores[rule] = percent(point, "top1")
                policies[rule] = {
                    "reduction": list(point.schedule),
                    "macs_ratio": round(point.macs / result.whole.macs, 4),
                }
    return {
        "name": f"top1, {target:.0%} of the MACs",
        **policies["mean_rotation"],
        "scores": scores,
        "policies": policies,
    }


if __name__ == "__main__":
    main()
