"""Pictures of merged groups. B batch, N patches + prefix, h x w grid of patches."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from pipeline.backbone.vit import MergingViT
from pipeline.config.schema import AugmentConfig
from pipeline.merging.schedule import ReductionSpec
from pipeline.token_state import TokenState

WIDTH = 224
"""Pixels of a panel's longer side, at least: borders have to be thinner than patches."""
BORDER = np.array([255, 255, 255], dtype=np.uint8)


@dataclass(frozen=True)
class Panel:
    """picture [H, W, 3] uint8."""

    picture: np.ndarray
    caption: str


def default_blocks(depth: int) -> list[int]:
    """Three blocks, the last one among them."""
    return sorted({max(0, round(depth * share) - 1) for share in (1 / 3, 2 / 3, 1)})


@torch.no_grad()
def draw_groups(
    backbone: MergingViT, images: Tensor, reductions: Sequence[ReductionSpec | None], blocks: Sequence[int], augment: AugmentConfig
) -> list[list[Panel]]:
    """One row per image [B, 3, H, W]: the image, then its groups after each block, for each reduction (None: the backbone's own)."""
    blocks = sorted(set(blocks))
    pictures = _pictures(images, augment)
    rows = [[Panel(picture, "image")] for picture in pictures]
    for reduction in reductions:
        states = backbone(images, reduction=reduction, taps=blocks, relaxed=False).taps
        asked = "" if reduction is None else f"r {reduction}, "
        for block, state in zip(blocks, states, strict=True):
            caption = f"{asked}block {block}: {state.tokens.shape[1]} tokens"
            for row, picture, slots in zip(rows, pictures, _slot_grid(state), strict=True):
                row.append(Panel(paint_groups(picture, slots), caption))
    return rows


def paint_groups(picture: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """picture [H, W, 3] uint8, slots [h, w] int -> the picture with each group in its mean colour, and a border between groups."""
    scale = tuple(size // grid for size, grid in zip(picture.shape, slots.shape, strict=False))
    owner = np.kron(slots, np.ones(scale, dtype=slots.dtype))
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
    """[B, h, w]: the slot of each patch."""
    assert state.source is not None and state.source.slots is not None, "inference keeps a hard source map"
    return state.source.slots[:, state.num_prefix :].reshape(-1, *state.grid).cpu().numpy()


def _pictures(images: Tensor, augment: AugmentConfig) -> list[np.ndarray]:
    """Normalised [B, 3, H, W] -> uint8 pictures, enlarged by a whole factor where they are small."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (augment.mean, augment.std))
    pixels = ((images.cpu() * std + mean).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    factor = max(1, -(-WIDTH // max(pixels.shape[1:3])))
    return [picture.repeat(factor, axis=0).repeat(factor, axis=1) for picture in pixels]


def write_png(rows: Sequence[Sequence[Panel]], title: str, path: Path) -> Path:
    """A page: one row per image, captions above each column."""
    columns = len(rows[0])
    figure = Figure(figsize=(1.9 * columns, 1.85 * len(rows) + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=8, x=0.01, ha="left")
    for axes, panel, first in zip(
        figure.subplots(len(rows), columns, squeeze=False).flat,
        (panel for row in rows for panel in row),
        (i == 0 for i, row in enumerate(rows) for _ in row),
        strict=True,
    ):
        axes.imshow(panel.picture)
        axes.axis("off")
        if first:
            axes.set_title(panel.caption, fontsize=8)
    figure.savefig(path, dpi=120)
    return path


def write_html(rows: Sequence[Sequence[Panel]], title: str, path: Path) -> Path:
    """The same page as one file that needs no other."""
    head = "".join(f"<th>{html.escape(panel.caption)}</th>" for panel in rows[0])
    body = "".join("<tr>" + "".join(f'<td><img alt="" src="{_data_url(panel)}"></td>' for panel in row) + "</tr>" for row in rows)
    style = "body{font:14px sans-serif;margin:2em}th{font-weight:normal;text-align:left;padding:4px}td{padding:4px}"
    path.write_text(
        f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title><style>{style}</style>"
        f"<h1 style='font-size:16px'>{html.escape(title)}</h1><table><tr>{head}</tr>{body}</table>",
        encoding="utf-8",
    )
    return path


def _data_url(panel: Panel) -> str:
    buffer = io.BytesIO()
    Image.fromarray(panel.picture).save(buffer, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
