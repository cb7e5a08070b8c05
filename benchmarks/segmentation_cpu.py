"""What unmerging costs, and what merging half of the tokens saves, in the encoder of a segmentation model on
the CPU.

All runs take turns in one process; random weights and images.

    python benchmarks/segmentation_cpu.py
"""

import argparse
from collections.abc import Callable
from itertools import product

import torch
from measure import comparison, in_turns
from record import write_record
from torch import Tensor

from pipeline import build_backbone, unmerge
from pipeline.backbone.vit import MergingViT
from pipeline.merging.schedule import reduction_for_merged
from pipeline.merging.unmerge import UNMERGES


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--size", type=int, default=512, help="pixels per side")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument(
        "--merged", type=float, default=0.5, help="share of the patches that is merged after the last block"
    )
    parser.add_argument(
        "--within",
        type=float,
        nargs="+",
        default=[1.0, 0.5],
        help="shares of the blocks, from the first, that merge",
    )
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--record", default="benchmarks/records/segmentation_cpu.json")
    args = parser.parse_args()

    torch.manual_seed(0)
    backbone = build_backbone(args.model, policy="dtem", img_size=args.size).eval()
    images = torch.randn(args.batch, 3, args.size, args.size, generator=torch.Generator().manual_seed(0))
    results = []
    for within, threads in product(args.within, args.threads):
        reduction = reduction_for_merged(backbone.depth, args.merged, backbone.grid, within=within)
        results += compare(
            backbone,
            images,
            reduction,
            f"merged in {within:.0%} of the blocks, {threads} threads",
            threads,
            args.repeats,
        )
    what = f"{args.model}, {args.size}x{args.size}, {args.merged:.0%} of the patches merged, fp32"
    claim = f"{what}: the encoder's images/s over r = 0, and its seconds over those without unmerging"
    write_record(args.record, claim, results)


def compare(
    backbone: MergingViT, images: Tensor, reduction: list[int], name: str, threads: int, repeats: int
) -> list[dict]:
    torch.set_num_threads(threads)
    ways = [how for how in UNMERGES if how != "soft"]  # soft is copy in inference
    runs = {"r = 0": encoder(backbone, images, 0, None), "merged": encoder(backbone, images, reduction, None)}
    runs |= {how: encoder(backbone, images, reduction, how) for how in ways}
    seconds = in_turns(runs, repeats)
    speed = {run: [len(images) / s for s in times] for run, times in seconds.items()}
    saved = [
        comparison(f"images/s, unmerged by {how}, over r = 0; {name}", speed[how], speed["r = 0"])
        for how in ways
    ]
    cost = [
        comparison(f"seconds, unmerged by {how}, over not unmerged; {name}", seconds[how], seconds["merged"])
        for how in ways
    ]
    return saved + cost


def encoder(
    backbone: MergingViT, images: Tensor, reduction: int | list[int], how: str | None
) -> Callable[[], Tensor]:
    """One call encodes the batch, to a full grid where there is a way to unmerge."""

    @torch.inference_mode()
    def run() -> Tensor:
        final = backbone(images, reduction=reduction, unmerge=how).final
        return final.tokens if how is None else unmerge(final)

    return run


if __name__ == "__main__":
    main()
