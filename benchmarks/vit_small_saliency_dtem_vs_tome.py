"""The saliency map of a real pretrained ViT-S/14 with a dense head, with 30, 50, 70 and 85 % of its patches
merged: DTEM, taught by `dtem teach` without labels, against ToMe, random merging and its own untrained
embedding.

The model is frozen. Its decoder reads the unmerged grid of patches, and its map on the unmerged model is the
reference. An adapter is taught once per seed from the training pictures. All policies are then compared on
the others. A stopped script continues.

    python benchmarks/vit_small_saliency_dtem_vs_tome.py --weights vit_small_saliency/model.safetensors \\
        --train 'data/camvid/train-{00000..00003}.tar' --val data/camvid/val-00000.tar
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from record import write_record
from saliency import measured
from stages import POLICIES, arguments

from launch.measure.points import DIVERGENCE, Point, Sweep

MERGED, WITHIN = (0.3, 0.5, 0.7, 0.85), {"all blocks": 1.0, "the first half of the blocks": 0.5}
CLAIM = (
    "divergence (nats x 1e4) of a pretrained ViT-S/14's saliency map from that of the unmerged model: DTEM, "
    "taught without labels, at most half of ToMe's, and below its untrained embedding, with 30, 50, 70 and "
    "85 % of the patches merged in all blocks or in the first half of them"
)


def main() -> None:
    parser = arguments(__doc__, "vit_small_saliency_dtem_vs_tome")
    parser.add_argument("--weights", type=Path, required=True, help="safetensors file of ViT and decoder")
    args = parser.parse_args()
    results = (
        row
        for words, within in WITHIN.items()
        for row in _rows(measured(args, POLICIES, MERGED, within=within), words)
    )
    write_record(args.record, CLAIM, results, seeds=args.seeds)


def _rows(result: Sweep, words: str) -> Iterator[dict[str, Any]]:
    """The results of the record. macs_ratio: DTEM's, without decoder."""
    for target in MERGED:
        points = {point.policy: point for point in result.points if point.target == target}
        yield {
            "name": f"divergence, {target:.0%} of the patches merged in {words}",
            "reduction": list(points["dtem"].schedule),
            "macs_ratio": round(points["dtem"].macs / result.whole.macs, 4),
            "scores": {policy: _scaled(point) for policy, point in points.items()},
        }


def _scaled(point: Point) -> list[float]:
    """One divergence per seed, times 1e4."""
    return [round(1e4 * value, 2) for value in point.scores[DIVERGENCE] if value is not None]


if __name__ == "__main__":
    main()
