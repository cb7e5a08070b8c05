"""Encoders of segmentation that are timed: at full size or merged, unmerged to a full grid or not."""

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from floor import Floor, floor_of
from options import PRECISIONS, place, random_images, speed_arguments
from record import write_record
from torch import Tensor

from pipeline import build_backbone, unmerge
from pipeline.backbone.macs import count_macs
from pipeline.backbone.vit import MergingViT
from pipeline.merging.schedule import reduction_for_merged
from pipeline.merging.unmerge import UNMERGES
from pipeline.token_state import TokenState

WAYS = [how for how in UNMERGES if how != "soft"]
"""In inference soft is copy."""


@dataclass(frozen=True)
class Case:
    """What one comparison is about. schedule: r of each block; where: for the names of its results."""

    args: argparse.Namespace
    backbone: MergingViT
    floor: Floor
    images: Tensor
    schedule: list[int]
    where: str

    def encoding(self, reduction: int | list[int], how: str | None) -> Callable[[], TokenState]:
        """One call encodes the batch. how: the way in which the state can be unmerged then."""
        dtype = PRECISIONS[self.args.precision]

        @torch.inference_mode()
        def run() -> TokenState:
            with torch.autocast(self.images.device.type, dtype, enabled=dtype != torch.float32):
                return self.backbone(self.images, reduction=reduction, unmerge=how).final

        return run

    @property
    def macs(self) -> tuple[int, int]:
        """Of the batch, unmerged and merged."""
        whole, merged = (count_macs(self.backbone, reduction=r).total for r in (0, self.schedule))
        return whole * len(self.images), merged * len(self.images)


Compare = Callable[[Case], Iterable[dict[str, Any]]]


def measure_encoders(description: str | None, name: str, what: str, compares: Sequence[Compare]) -> None:
    """The script `name`: makes each comparison at each schedule and batch size, and writes the record. what:
    of the claim, is compared."""
    args = encoder_arguments(description, name).parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    backbone = build_backbone(args.model, policy="dtem", img_size=args.size).to(args.device).eval()
    cases = cases_of(args, backbone, floor_of(args.device, PRECISIONS[args.precision]))
    claim = (
        f"{args.model}, {args.size}x{args.size}, {args.merged:.0%} of the patches merged, {place(args)}: "
        f"{what}"
    )
    results = (result for case in cases for compare in compares for result in compare(case))
    write_record(args.record, claim, results)


def cases_of(args: argparse.Namespace, backbone: MergingViT, floor: Floor) -> Iterator[Case]:
    for within, batch in product(args.within, args.batches):
        images = random_images(batch, args.device, args.size)
        schedule = reduction_for_merged(backbone.depth, args.merged, backbone.grid, within=within)
        where = f"merged in {within:.0%} of the blocks, batch {batch}, {place(args)}"
        yield Case(args, backbone, floor, images, schedule, where)


def encoder_arguments(description: str | None, name: str) -> argparse.ArgumentParser:
    parser = speed_arguments(description, name, batches=(1, 4))
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--size", type=int, default=512, help="pixels per side")
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
    return parser


def gridded(encode: Callable[[], TokenState]) -> Callable[[], Tensor]:
    """One call encodes the batch and unmerges it to a full grid."""

    @torch.inference_mode()
    def run() -> Tensor:
        return unmerge(encode())

    return run
