"""What unmerging costs: in an encoder of segmentation, against the same without; and alone, against one
gather of as many rows, which every way has to make.

    python benchmarks/unmerge.py
    python benchmarks/unmerge.py --device cuda --precision bf16 --batches 1,16,64
"""

import argparse
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from encoders import WAYS, encoder_arguments, encoder_of, encoding, gridded, schedule_of
from floor import Floor, floor_of, shares
from measure import MIB, comparison, in_turns, peak_added
from options import PRECISIONS, place, random_images
from record import write_record
from torch import Tensor

from pipeline import unmerge
from pipeline.backbone.vit import MergingViT
from pipeline.merging.unmerge import slots
from pipeline.token_state import TokenState


def main() -> None:
    args = encoder_arguments(__doc__, "unmerge", batches=(1, 4)).parse_args()
    torch.set_num_threads(args.threads)
    backbone, floor = encoder_of(args), floor_of(args.device, PRECISIONS[args.precision])
    results = [
        result
        for within, batch in product(args.within, args.batches)
        for compare in (in_the_encoder, alone)
        for result in compare(backbone, args, within, batch, floor)
    ]
    claim = (
        f"{args.model}, {args.size}x{args.size}, {args.merged:.0%} of the patches merged, {place(args)}: "
        "seconds with unmerging over those without, and alone over one gather"
    )
    write_record(args.record, claim, results)


def in_the_encoder(
    backbone: MergingViT, args: argparse.Namespace, within: float, batch: int, floor: Floor
) -> list[dict[str, Any]]:
    images, schedule = random_images(batch, args.device, args.size), schedule_of(backbone, args, within)
    runs: dict[str, Callable[[], object]] = {
        how: gridded(encoding(backbone, images, schedule, how, args.precision)) for how in WAYS
    }
    runs["merged"] = encoding(backbone, images, schedule, None, args.precision)
    seconds = in_turns(runs, args.repeats, budget=args.budget)
    return [
        comparison(
            f"seconds, unmerged by {how}, over not unmerged; {where(args, within, batch)}",
            seconds[how],
            seconds["merged"],
        )
        for how in WAYS
    ]


def alone(
    backbone: MergingViT, args: argparse.Namespace, within: float, batch: int, floor: Floor
) -> list[dict[str, Any]]:
    images, schedule = random_images(batch, args.device, args.size), schedule_of(backbone, args, within)
    results = []
    for how in WAYS:
        state = encoding(backbone, images, schedule, how, args.precision)()
        runs = {"ours": lambda state=state: unmerge(state).contiguous(), "gather": one_gather(state)}
        with torch.inference_mode():
            seconds = in_turns(runs, 5 * args.repeats, warmup=3, budget=args.budget)
            peaks = {run: round(peak_added(call, args.device) / MIB, 2) for run, call in runs.items()}
        name = f"seconds of unmerging by {how}, alone, over one gather; {where(args, within, batch)}"
        result = comparison(name, *seconds.values())
        shares(result, floor, seconds["ours"], nbytes=moved(state))
        results.append(result | {"peak_mib": {"ours": peaks["ours"], "peer": peaks["gather"]}})
    return results


def one_gather(state: TokenState) -> Callable[[], Tensor]:
    """One call copies the token of each patch's slot, which is known before, to a grid in memory."""
    source = slots(state)[:, state.num_prefix :, None].expand(-1, -1, state.tokens.shape[2])
    height, width = state.grid
    return lambda: state.tokens.gather(1, source).mT.reshape(len(source), -1, height, width)


def moved(state: TokenState) -> int:
    """Bytes that any way reads and writes: the tokens, and a value for each patch."""
    patches = state.grid[0] * state.grid[1]
    batch, slots_left, channels = state.tokens.shape
    return batch * (slots_left + patches) * channels * state.tokens.element_size()


def where(args: argparse.Namespace, within: float, batch: int) -> str:
    return f"merged in {within:.0%} of the blocks, batch {batch}, {place(args)}"


if __name__ == "__main__":
    main()
