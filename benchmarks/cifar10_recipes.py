"""Ways to train DTEM's embedding, on one frozen CIFAR-10 ViT with the same images: what closes the gap
between soft and hard merging.

All with the learning rate of configs/cifar10_vit_dtem.py (2e-3) but the first, which has the paper's.

Uses the backbone of cifar10_dtem_vs_tome.py where --work is its folder, else trains it. The divergence is
that of the hard-merged model's classes from the unmerged one's, over the validation shards: less noisy than
accuracy.

    python benchmarks/cifar10_recipes.py --train 'data/cifar10/train-{00000..00008}.tar' \\
        --val data/cifar10/val-00000.tar
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from record import write_record
from stages import arguments, data_options, percent, shown, train_on_two_cores, train_side_by_side, trial

from launch.measure.planning import Aims
from launch.measure.points import Target
from launch.measure.sweep import sweep
from launch.saved.policy_names import UNTRAINED
from launch.saved.run import build, read_run
from pipeline.backbone.macs import reduction_for_macs
from pipeline.data.stream import build_eval_loader
from pipeline.model import training_grid
from pipeline.objectives.distill import divergence

MACS = (0.7, 0.5, 0.3)
STEPS = 300
REFERENCE = "merging.options.split=reference"
DISTILL = "objective.type=distill"
RECIPES = {
    "paper (soft, labels, lr 1e-4)": [REFERENCE, "objective.type=supervised", "optim.lr=1e-4"],
    "soft, reference split, labels": [REFERENCE, "objective.type=supervised"],
    "soft, reference split, distilled": [REFERENCE, DISTILL],
    "soft, one partition, distilled": ["merging.options.relaxation=soft", DISTILL],
    "straight-through, distilled": ["merging.options.relaxation=straight_through", DISTILL],
    "merge cost": [],
}
CLAIM = (
    f"CIFAR-10, {STEPS} steps of 128 images: top-1 (%) and divergence from the unmerged model, by "
    "training recipe"
)


def main() -> None:
    args = arguments(__doc__, "cifar10_recipes").parse_args()
    data = data_options(args, "cifar10")
    halves = [*data, *trial(args), "tasks.cifar10.data.batch_size=32"]
    backbone = train_on_two_cores("configs/cifar10_vit.py", args.work / "backbone", halves)
    short = [
        *data,
        *(trial(args) or [f"train.steps={STEPS}"]),
        f"backbone.weights={backbone}",
        "train.reduction_range=(1, 6)",
    ]
    jobs = {
        (name, seed): args.work / f"recipe_{slug(name)}_seed{seed}" for name in RECIPES for seed in args.seeds
    }
    options = [[*short, f"seed={seed}", *RECIPES[name]] for name, seed in jobs]
    train_side_by_side("configs/cifar10_vit_dtem.py", list(jobs.values()), options)
    runs = {name: [folder for (recipe, _), folder in jobs.items() if recipe == name] for name in RECIPES}
    targets = shown(args, MACS)
    results = [compare(name, folders, data, targets) for name, folders in runs.items()]
    untrained = compare("untrained", runs["merge cost"], data, targets, suffix=UNTRAINED)
    write_record(args.record, CLAIM, [untrained, *results], seeds=args.seeds, runs=list(jobs.values()))


def slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def compare(
    name: str, folders: list[Path], data: list[str], targets: Sequence[Target], *, suffix: str = ""
) -> dict[str, Any]:
    runs = [read_run(folder, "last", data) for folder in folders]
    [result] = sweep(runs, ["dtem" + suffix], Aims(targets), rounds=0)
    points = {f"{point.target:.0%}": percent(point, result.metric) for point in result.points}
    gaps = {
        f"{target:.0%}": [round(mean_divergence(run, target, suffix), 5) for run in runs]
        for target in targets
    }
    return {"name": name, "scores": points, "divergence": gaps}


@torch.no_grad()
def mean_divergence(run: Any, target: float, suffix: str) -> float:
    """Mean KL of the hard-merged model's classes from the unmerged model's."""
    model, task = build(run, "dtem" + suffix), "cifar10"
    reduction = reduction_for_macs(
        model.backbone, target, training_grid(model.backbone, run.config.tasks[task])
    )
    total, samples = 0.0, 0
    for pixels in build_eval_loader(task, run.config.tasks[task].data, rank=0, world_size=1):
        batch = pixels.to("cpu")
        whole, merged = (model.predict(batch, reduction=r, relaxed=False) for r in (0, reduction))
        own, wanted = (model.tasks[task].log_probs(output, batch) for output in (merged, whole))
        total += float(divergence(own, wanted)) * len(batch.images)
        samples += len(batch.images)
    return total / samples


if __name__ == "__main__":
    main()
