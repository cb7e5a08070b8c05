"""Pages of pictures and text: one row per image, as PNG and as HTML that needs no other file."""

import base64
import html
import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

PICTURE_WIDTH, TEXT_WIDTH = 1.9, 2.4
"""Inches of a column of pictures, and of one of text, in which lines have so many characters."""
TEXT_CHARACTERS = 50


@dataclass(frozen=True)
class Panel:
    """content: a picture [H, W, 3] uint8, or texts."""

    content: np.ndarray | Sequence[str]
    caption: str


@dataclass(frozen=True)
class Page:
    """rows: alike in number and kinds of panels. legend: what colours [3] uint8 mean, by name."""

    title: str
    rows: list[list[Panel]]
    legend: dict[str, np.ndarray]

    def caption(self, row: int, column: int) -> str:
        """Empty where it is that of the row above."""
        own = self.rows[row][column].caption
        return "" if row and own == self.rows[row - 1][column].caption else own


def write_png(page: Page, path: Path) -> Path:
    widths = [PICTURE_WIDTH if isinstance(panel.content, np.ndarray) else TEXT_WIDTH for panel in page.rows[0]]
    heights = [_height(row) for row in page.rows]
    figure = Figure(figsize=(sum(widths), sum(heights) + 0.6 + (0.4 if page.legend else 0)), layout="constrained")
    figure.suptitle(page.title, fontsize=8, x=0.01, ha="left")
    grid = figure.subplots(len(page.rows), len(widths), squeeze=False, width_ratios=widths, height_ratios=heights)
    for i, (row, cells) in enumerate(zip(page.rows, grid, strict=True)):
        for j, (panel, axes) in enumerate(zip(row, cells, strict=True)):
            _draw(panel.content, axes)
            axes.axis("off")
            axes.set_title(page.caption(i, j), fontsize=8)
    if page.legend:
        patches = [Patch(color=tuple(colour / 255), label=name) for name, colour in page.legend.items()]
        figure.legend(handles=patches, loc="outside lower left", ncols=max(1, 2 * len(widths)), fontsize=7, frameon=False)
    figure.savefig(path, dpi=120)
    return path


def _height(row: Sequence[Panel]) -> float:
    """Inches, which its tallest picture fills beside a caption above."""
    tallest = max((panel.content.shape[0] / panel.content.shape[1] for panel in row if isinstance(panel.content, np.ndarray)), default=1.0)
    return (PICTURE_WIDTH - 0.25) * tallest + 0.2


def _draw(content: np.ndarray | Sequence[str], axes: Any) -> None:
    if isinstance(content, np.ndarray):
        axes.imshow(content)
        return
    lines = [textwrap.fill(text, TEXT_CHARACTERS, subsequent_indent="  ") for text in content]
    axes.text(0, 1, "\n".join(lines), fontsize=6, va="top", parse_math=False, transform=axes.transAxes)


def write_html(page: Page, path: Path) -> Path:
    body = "".join("<tr>" + "".join(_cell(page, i, j) for j in range(len(row))) + "</tr>" for i, row in enumerate(page.rows))
    style = "body{font:14px sans-serif;margin:2em}td{padding:4px;vertical-align:bottom}"
    style += "p{max-width:16em;margin:0 0 .5em}i{display:inline-block;width:1em;height:1em}"
    keys = " &ensp; ".join(f"<i style='background:rgb{tuple(map(int, c))}'></i> {html.escape(name)}" for name, c in page.legend.items())
    path.write_text(
        f"<!doctype html><meta charset=utf-8><title>{html.escape(page.title)}</title><style>{style}</style>"
        f"<h1 style='font-size:16px'>{html.escape(page.title)}</h1><p>{keys}</p><table>{body}</table>",
        encoding="utf-8",
    )
    return path


def _cell(page: Page, row: int, column: int) -> str:
    caption = html.escape(page.caption(row, column))
    content = page.rows[row][column].content
    if isinstance(content, np.ndarray):
        shown = f'<img alt="" src="{_data_url(content)}">'
    else:
        shown = "".join(f"<p>{html.escape(text)}</p>" for text in content)
    return f"<td>{caption}{'<br>' if caption else ''}{shown}</td>"


def _data_url(picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
