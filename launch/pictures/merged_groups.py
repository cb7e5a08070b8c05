"""Pictures of merged groups. N patches + prefix, h x w grid of patches."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from launch.pictures.page import Panel
from pipeline.merging.schedule import ReductionSpec
from pipeline.merging.unmerge import slots
from pipeline.model import MultiTaskModel
from pipeline.token_state import TokenState

WIDTH = 224
"""Least pixels of a panel's longer side: borders have to be thinner than patches."""
BORDER = np.array([255, 255, 255], dtype=np.uint8)


def default_blocks(depth: int) -> list[int]:
    """Three blocks, the last one among them."""
    return sorted({max(0, round(depth * share) - 1) for share in (1 / 3, 2 / 3, 1)})


def picture_of(image: Tensor) -> np.ndarray:
    """The image, uint8 [3, H, W], as uint8 [H, W, 3], enlarged by a whole factor if it is small."""
    pixels = image.permute(1, 2, 0).numpy()
    factor = max(1, -(-WIDTH // max(pixels.shape[:2])))
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def reduction_text(reduction: ReductionSpec | None) -> str:
    """The words of a caption for a reduction; None: the task's own."""
    return "merged" if reduction is None else "unmerged" if reduction == 0 else f"r {reduction}"


@torch.no_grad()
def draw_groups(
    model: MultiTaskModel,
    task: str,
    image: Tensor,
    picture: np.ndarray,
    reductions: Sequence[ReductionSpec | None],
    blocks: Sequence[int],
) -> list[Panel]:
    """Panels with the groups of a normalised image [3, H, W] after each block, for each reduction (None: the
    task's own). picture: see `picture_of`.

    An image that does not fill its patches is padded with zeros at the right and below, as in evaluation.
    """
    (height, width), (patch_h, patch_w) = image.shape[1:], model.backbone.patch_size
    blocks = sorted(set(blocks))
    padded = F.pad(image, (0, -width % patch_w, 0, -height % patch_h))
    cell = patch_h * picture.shape[0] // height, patch_w * picture.shape[1] // width
    panels = []
    for reduction in reductions:
        states = model.encode(
            task, padded[None], reduction=reduction, taps=blocks, unmerge=None, relaxed=False
        ).taps
        prefix = "" if reduction is None else f"r {reduction}, "
        for block, state in zip(blocks, states, strict=True):
            panels.append(
                Panel(
                    paint_groups(picture, _slot_grid(state), cell),
                    f"{prefix}block {block}: {state.tokens.shape[1]} tokens",
                )
            )
    return panels


def paint_groups(picture: np.ndarray, slots: np.ndarray, cell: tuple[int, int]) -> np.ndarray:
    """The picture with each group in its mean colour, and a border between groups.

    picture [H, W, 3] uint8. slots [h, w] int: the slot of each patch. cell: height and width of a patch in
    the picture, which may end within its last patches.
    """
    height, width = picture.shape[:2]
    owner = np.kron(slots, np.ones(cell, dtype=slots.dtype))[:height, :width]
    flat = owner.ravel()
    count = np.maximum(np.bincount(flat), 1)
    mean = np.stack([np.bincount(flat, picture[..., c].ravel()) / count for c in range(3)], axis=-1)
    painted = mean[owner].round().astype(np.uint8)
    painted[_edges(owner)] = BORDER
    return painted


def _edges(owner: np.ndarray) -> np.ndarray:
    """[H, W] bool: the pixels whose right or lower neighbour belongs to another group."""
    edges = np.zeros(owner.shape, dtype=bool)
    edges[:, :-1] |= owner[:, :-1] != owner[:, 1:]
    edges[:-1] |= owner[:-1] != owner[1:]
    return edges


def _slot_grid(state: TokenState) -> np.ndarray:
    """[h, w]: the slot of each patch of the first image."""
    return slots(state)[0, state.num_prefix :].reshape(state.grid).cpu().numpy()
