"""What unmerging costs, and what merging half of the tokens saves, in the encoder of a segmentation model on the CPU.

python benchmarks/segmentation_cpu.py
"""

import argparse
from collections.abc import Callable

import torch
from measure import in_turns, ratio, summary, write_record
from torch import Tensor

from pipeline import build_backbone, unmerge
from pipeline.backbone.vit import MergingViT
from pipeline.merging.schedule import reduction_for_merged
from pipeline.merging.unmerge import UNMERGES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--size", type=int, default=512, help="pixels per side")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--merged", type=float, default=0.5, help="share of the patches that is merged after the last block")
    parser.add_argument("--within", type=float, default=1.0, help="share of the blocks, from the first, that merge")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--record", default="benchmarks/records/segmentation_cpu.json")
    args = parser.parse_args()

    torch.manual_seed(0)
    backbone = build_backbone(args.model, policy="dtem", img_size=args.size).eval()
    images = torch.randn(args.batch, 3, args.size, args.size, generator=torch.Generator().manual_seed(0))
    results = [result for threads in args.threads for result in compare(backbone, images, args.merged, args.within, threads, args.repeats)]
    what = f"{args.model}, {args.size}x{args.size}, {args.merged:.0%} of the patches merged in {args.within:.0%} of the blocks, fp32"
    claim = f"{what}: the encoder's images/s over r = 0, and its seconds over those without unmerging"
    write_record(args.record, claim, results)


def compare(backbone: MergingViT, images: Tensor, share: float, within: float, threads: int, repeats: int) -> list[dict]:
    torch.set_num_threads(threads)
    reduction = reduction_for_merged(backbone, share, backbone.grid, within=within)
    runs = {"r = 0": encoder(backbone, images, 0, None), "merged": encoder(backbone, images, reduction, None)}
    runs |= {how: encoder(backbone, images, reduction, how) for how in UNMERGES if how != "soft"}  # soft is copy in inference
    seconds = in_turns(runs, repeats)
    speed = {name: [len(images) / s for s in times] for name, times in seconds.items()}
    saved = [
        _result(f"images/s, merged and unmerged by {how}, vs r = 0, {threads} threads", speed[how], speed["r = 0"])
        for how in runs
        if how in UNMERGES
    ]
    cost = [
        _result(f"seconds, unmerged by {how}, vs not unmerged, {threads} threads", seconds[how], seconds["merged"])
        for how in runs
        if how in UNMERGES
    ]
    return saved + cost


def encoder(backbone: MergingViT, images: Tensor, reduction: int | list[int], how: str | None) -> Callable[[], Tensor]:
    """One call encodes the batch, to a full grid where there is a way to unmerge."""

    @torch.inference_mode()
    def run() -> Tensor:
        final = backbone(images, reduction=reduction, unmerge=how).final
        return final.tokens if how is None else unmerge(final)

    return run


def _result(name: str, ours: list[float], peer: list[float]) -> dict:
    return {"name": name, "ours": summary(ours), "peer": summary(peer), "ratio": ratio(ours, peer)}


if __name__ == "__main__":
    main()
