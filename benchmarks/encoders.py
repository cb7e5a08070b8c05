"""Encoders of segmentation that are timed: at full size or merged, unmerged to a full grid or not."""

import argparse
from collections.abc import Callable, Sequence

import torch
from options import PRECISIONS, speed_arguments
from torch import Tensor

from pipeline import build_backbone, unmerge
from pipeline.backbone.vit import MergingViT
from pipeline.merging.schedule import reduction_for_merged
from pipeline.merging.unmerge import UNMERGES
from pipeline.token_state import TokenState

WAYS = [how for how in UNMERGES if how != "soft"]
"""In inference soft is copy."""


def encoder_arguments(description: str | None, name: str, batches: Sequence[int]) -> argparse.ArgumentParser:
    parser = speed_arguments(description, name, batches=batches)
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


def encoder_of(args: argparse.Namespace) -> MergingViT:
    """The encoder on its device, with random weights."""
    torch.manual_seed(0)
    return build_backbone(args.model, policy="dtem", img_size=args.size).to(args.device).eval()


def schedule_of(backbone: MergingViT, args: argparse.Namespace, within: float) -> list[int]:
    return reduction_for_merged(backbone.depth, args.merged, backbone.grid, within=within)


def encoding(
    backbone: MergingViT, images: Tensor, reduction: int | list[int], how: str | None, precision: str
) -> Callable[[], TokenState]:
    """One call encodes the batch. how: the way in which the state can be unmerged then."""
    dtype = PRECISIONS[precision]

    @torch.inference_mode()
    def run() -> TokenState:
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            return backbone(images, reduction=reduction, unmerge=how).final

    return run


def gridded(encode: Callable[[], TokenState]) -> Callable[[], Tensor]:
    """One call encodes the batch and unmerges it to a full grid."""

    @torch.inference_mode()
    def run() -> Tensor:
        return unmerge(encode())

    return run
