"""Ways to unmerge, and a decoder that reads merged tokens, on the Segmenter and the embeddings of
camvid_dtem_vs_tome.py.

In inference: the grid by copy or by residual, and the decoder on merged tokens, whose logits are copied. In
training: the paper's relaxed merges with labels, which reach the embedding through the grid by copy, soft or
residual; all evaluated by residual.

    python benchmarks/camvid_unmerge.py --train 'data/camvid/train-{00000..00003}.tar' \\
        --val data/camvid/val-00000.tar
"""

from pathlib import Path
from statistics import median
from typing import Any

from record import write_record
from stages import arguments, data_options, percent, shown, train_side_by_side, trial

from launch.measure.planning import Aims
from launch.measure.points import Point, Sweep, Target
from launch.measure.sweep import sweep
from launch.saved.run import read_run
from pipeline.merging.unmerge import UNMERGES

MERGED = (0.3, 0.5, 0.7)
WITHIN = 0.5
STEPS = 200
DECODERS = {
    "grid by copy": ["tasks.camvid.head.unmerge=copy"],
    "grid by residual": ["tasks.camvid.head.unmerge=residual"],
    "decoder on merged tokens, logits by copy": [
        "tasks.camvid.head.unmerge=copy",
        "tasks.camvid.head.merged_decoder=True",
    ],
}
RELAXED = ["objective.type=supervised", "merging.options.relaxation=soft"]
CLAIM = (
    "CamVid mIoU (%) of a frozen Segmenter by the way of unmerging: residual is the best in "
    "inference; soft or residual in training"
)


def main() -> None:
    parser = arguments(__doc__, "camvid_unmerge")
    parser.set_defaults(work=Path("runs/camvid_dtem_vs_tome"))
    args = parser.parse_args()
    data = data_options(args, "camvid")
    seeds = [args.work / f"dtem_seed{seed}" for seed in args.seeds]
    targets, rounds = shown(args, MERGED), 5 if args.steps is None else 1

    def compared(
        name: str, runs: list[Path], changed: list[str], policies: list[str]
    ) -> list[dict[str, Any]]:
        own = [read_run(run, "last", [*data, *changed]) for run in runs]
        [result] = sweep(own, policies, Aims(targets, merged=True, within=WITHIN), rounds=rounds)
        return [entry(name, result, target) for target in targets]

    results = [
        found
        for name, changed in DECODERS.items()
        for found in compared(name, seeds, changed, ["tome", "dtem"])
    ]
    trained = [args.work / f"relaxed_{how}" for how in UNMERGES]
    common = [
        *data,
        *RELAXED,
        *(trial(args) or [f"train.steps={STEPS}"]),
        f"backbone.weights={(args.work / 'backbone').resolve()}",
    ]
    train_side_by_side(
        "configs/camvid_segmenter_vit_tiny_dtem.py",
        trained,
        [[*common, f"tasks.camvid.head.unmerge={how}"] for how in UNMERGES],
    )
    for how, run in zip(UNMERGES, trained, strict=True):
        name = f"embedding trained by relaxed merges, grid by {how}"
        results += compared(name, [run], DECODERS["grid by residual"], ["dtem"])
    write_record(args.record, CLAIM, results, seeds=args.seeds, runs=[*seeds, *trained])


def entry(name: str, result: Sweep, target: Target) -> dict[str, Any]:
    """images_per_s_ratio: of encoder and decoder, over the unmerged model with the same decoder."""
    points = {point.policy: point for point in result.points if point.target == target}
    own = points["dtem"]
    return {
        "name": f"{name}, {target:.0%} of the patches merged",
        "reduction": list(own.schedule),
        "macs_ratio": round(own.macs / result.whole.macs, 4),
        "decoder_macs_ratio": round(own.head_macs / result.whole.head_macs, 4),
        "images_per_s_ratio": round(speed(own) / speed(result.whole), 3),
        "scores": {
            policy: percent(point, result.metric)
            for policy, point in {"none": result.whole, **points}.items()
        },
    }


def speed(point: Point) -> float:
    return median(point.images_per_s)


if __name__ == "__main__":
    main()
