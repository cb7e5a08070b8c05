"""What merging half of the tokens saves in the encoder of a segmentation model, with all of its unmerging.

All runs take turns in one process; random weights and images.

    python benchmarks/segmentation.py
    python benchmarks/segmentation.py --device cuda --precision bf16 --batches 1,16,64
"""

import argparse
from itertools import product
from typing import Any

import torch
from encoders import WAYS, encoder_arguments, encoder_of, encoding, gridded, schedule_of
from floor import Floor, floor_of, shares
from measure import MIB, comparison, in_turns, peak_added
from options import PRECISIONS, place, random_images
from record import write_record

from pipeline.backbone.macs import count_macs
from pipeline.backbone.vit import MergingViT


def main() -> None:
    args = encoder_arguments(__doc__, "segmentation", batches=(1, 4)).parse_args()
    torch.set_num_threads(args.threads)
    backbone, floor = encoder_of(args), floor_of(args.device, PRECISIONS[args.precision])
    results = [
        result
        for within, batch in product(args.within, args.batches)
        for result in compare(backbone, args, within, batch, floor)
    ]
    claim = (
        f"{args.model}, {args.size}x{args.size}, {args.merged:.0%} of the patches merged, {place(args)}: "
        "the encoder's images/s, unmerged, over r = 0"
    )
    write_record(args.record, claim, results)


def compare(
    backbone: MergingViT, args: argparse.Namespace, within: float, batch: int, floor: Floor
) -> list[dict[str, Any]]:
    images, schedule = random_images(batch, args.device, args.size), schedule_of(backbone, args, within)
    runs = {how: gridded(encoding(backbone, images, schedule, how, args.precision)) for how in WAYS}
    runs["r = 0"] = gridded(encoding(backbone, images, 0, None, args.precision))
    seconds = in_turns(runs, args.repeats, budget=args.budget)
    speed = {run: [batch / s for s in times] for run, times in seconds.items()}
    peaks = {run: round(peak_added(call, args.device) / MIB, 1) for run, call in runs.items()}
    whole, merged = (count_macs(backbone, reduction=r).total for r in (0, schedule))
    where = f"merged in {within:.0%} of the blocks, batch {batch}, {place(args)}"
    results = []
    for how in WAYS:
        name = f"images/s, unmerged by {how}, over r = 0; {where}"
        result = comparison(name, speed[how], speed["r = 0"])
        shares(result, floor, seconds[how], macs=merged * batch, mac_ratio=whole / merged)
        results.append(result | {"peak_mib": {"ours": peaks[how], "peer": peaks["r = 0"]}})
    return results


if __name__ == "__main__":
    main()
