"""Pictures of merged groups. h x w grid of patches, H x W pixels of a picture."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pipeline.drawing.panels import Panel
from pipeline.errors import ConfigError
from pipeline.merging.schedule import ReductionSpec
from pipeline.merging.unmerge import slots
from pipeline.model import MultiTaskModel
from pipeline.token_state import TokenState

LEAST, MOST = 224, 640
"""Pixels of a picture's longer side: borders have to be thinner than patches, and a page has many."""
BORDER = np.array([255, 255, 255], dtype=np.uint8)


def default_blocks(depth: int) -> list[int]:
    """Three numbers of blocks, counted from 1, the last one among them."""
    return sorted({max(1, round(depth * share)) for share in (1 / 3, 2 / 3, 1)})


def checked_blocks(blocks: Sequence[int], depth: int) -> list[int]:
    """The numbers of blocks in ascending order, each once. Raises ConfigError."""
    if strange := [block for block in blocks if not 1 <= block <= depth]:
        raise ConfigError(f"--blocks {strange[0]}: the backbone's blocks are counted from 1 to {depth}")
    return sorted(set(blocks))


def picture_of(image: Tensor) -> NDArray[np.uint8]:
    """The image, uint8 [3, H, W], as uint8 [H, W, 3], in whole steps enlarged if it is small and thinned out
    if it is large. A clip [..., T, 3, H, W] is its frames, of several views those of the first, side by
    side."""
    if image.ndim > 3:
        image = torch.cat(image.flatten(0, -4)[: image.shape[-4]].unbind(0), dim=-1)
    pixels = image.permute(1, 2, 0).cpu().numpy()
    longest = max(pixels.shape[:2])
    if longest > MOST:
        step = -(-longest // MOST)
        return np.ascontiguousarray(pixels[step // 2 :: step, step // 2 :: step])
    factor = max(1, -(-LEAST // longest))
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def reduction_text(reduction: ReductionSpec | None) -> str:
    """The words for a reduction; None: the task's own."""
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
    task's own). picture: see `picture_of`. blocks: counted from 1. Raises ConfigError.

    An image that does not fill its patches is padded with zeros at the right and below, as in evaluation.
    """
    size, (patch_h, patch_w) = (image.shape[1], image.shape[2]), model.backbone.patch_size
    blocks = checked_blocks(blocks, model.backbone.depth)
    padded = F.pad(image, (0, -size[1] % patch_w, 0, -size[0] % patch_h))[None]
    panels: list[Panel] = []
    for reduction in reductions:
        taps = [block - 1 for block in blocks]
        options = dict(taps=taps, unmerge=None, relaxed=False, training=False)
        states = model.encode(task, padded, reduction=reduction, **options).taps
        for block, state in zip(blocks, states, strict=True):  # whose patches may differ in size
            patch = padded.shape[-2] // state.grid[-2], padded.shape[-1] // state.grid[-1]
            panels += panels_of_states([state], [block], reduction, picture, size, patch)
    return panels


def panels_of_states(
    states: Sequence[TokenState],
    blocks: Sequence[int],
    reduction: ReductionSpec | None,
    picture: np.ndarray,
    size: tuple[int, int],
    patch: tuple[int, int],
) -> list[Panel]:
    """The groups of the first image after each block, whose states are given. size: (height, width) of the
    image that the patches cut up. picture: see `picture_of`."""
    prefix = "" if reduction is None else f"{reduction_text(reduction)}, "
    panels: list[Panel] = []
    for block, state in zip(blocks, states, strict=True):
        owner = owner_of_pixels(_slot_grid(state), size, patch, picture.shape[:2])
        caption = f"{prefix}block {block}: {state.tokens.shape[1]} tokens"
        panels.append(Panel(paint_groups(picture, owner), caption, merged=reduction != 0))
    return panels


def owner_of_pixels(
    slots: NDArray[np.int64], size: tuple[int, int], patch: tuple[int, int], shown: tuple[int, ...]
) -> NDArray[np.int64]:
    """[H, W]: the slot of each pixel of a picture of the size `shown`. slots [h, w]: that of each patch.
    size: pixels of the image that the patches cut up, which may end within its last ones."""
    rows, columns = (
        (np.arange(shown[i]) * size[i] // shown[i]) // patch[i] for i in range(2)
    )  # the patch of each row and column
    return slots[rows][:, columns]


def paint_groups(picture: np.ndarray, owner: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The picture [H, W, 3] uint8 with each group in its mean colour, and a border between groups. owner
    [H, W]: the group of each pixel."""
    flat = owner.ravel()
    count = np.maximum(np.bincount(flat), 1)
    mean = np.stack([np.bincount(flat, picture[..., c].ravel()) / count for c in range(3)], axis=-1)
    painted = mean[owner].round().astype(np.uint8)
    painted[_edges(owner)] = BORDER
    return painted


def _edges(owner: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[H, W]: the pixels whose right or lower neighbour belongs to another group."""
    edges = np.zeros(owner.shape, dtype=bool)
    edges[:, :-1] |= owner[:, :-1] != owner[:, 1:]
    edges[:-1] |= owner[:-1] != owner[1:]
    return edges


def _slot_grid(state: TokenState) -> NDArray[np.int64]:
    """[h, w]: the slot of each patch of the first image."""
    return slots(state)[0, state.num_prefix :].reshape(state.grid).cpu().numpy()
