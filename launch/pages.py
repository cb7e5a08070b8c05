"""Pages of pictures: one row per image, as PNG and as HTML that needs no other file."""

import base64
import html
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image


@dataclass(frozen=True)
class Panel:
    """picture [H, W, 3] uint8."""

    picture: np.ndarray
    caption: str


@dataclass(frozen=True)
class Page:
    """rows: equally long. legend: what colours [3] uint8 mean, by name."""

    title: str
    rows: list[list[Panel]]
    legend: dict[str, np.ndarray]

    def caption(self, row: int, column: int) -> str:
        """Empty where it is that of the row above."""
        own = self.rows[row][column].caption
        return "" if row and own == self.rows[row - 1][column].caption else own


def write_png(page: Page, path: Path) -> Path:
    columns = len(page.rows[0])
    figure = Figure(figsize=(1.9 * columns, 1.85 * len(page.rows) + 0.6 + (0.4 if page.legend else 0)), layout="constrained")
    figure.suptitle(page.title, fontsize=8, x=0.01, ha="left")
    for i, (row, cells) in enumerate(zip(page.rows, figure.subplots(len(page.rows), columns, squeeze=False), strict=True)):
        for j, (panel, axes) in enumerate(zip(row, cells, strict=True)):
            axes.imshow(panel.picture)
            axes.axis("off")
            axes.set_title(page.caption(i, j), fontsize=8)
    if page.legend:
        patches = [Patch(color=tuple(colour / 255), label=name) for name, colour in page.legend.items()]
        figure.legend(handles=patches, loc="outside lower left", ncols=max(1, 2 * columns), fontsize=7, frameon=False)
    figure.savefig(path, dpi=120)
    return path


def write_html(page: Page, path: Path) -> Path:
    body = "".join("<tr>" + "".join(_cell(page, i, j) for j in range(len(row))) + "</tr>" for i, row in enumerate(page.rows))
    style = "body{font:14px sans-serif;margin:2em}td{padding:4px;vertical-align:bottom}i{display:inline-block;width:1em;height:1em}"
    keys = " &ensp; ".join(f"<i style='background:rgb{tuple(map(int, c))}'></i> {html.escape(name)}" for name, c in page.legend.items())
    path.write_text(
        f"<!doctype html><meta charset=utf-8><title>{html.escape(page.title)}</title><style>{style}</style>"
        f"<h1 style='font-size:16px'>{html.escape(page.title)}</h1><p>{keys}</p><table>{body}</table>",
        encoding="utf-8",
    )
    return path


def _cell(page: Page, row: int, column: int) -> str:
    caption = html.escape(page.caption(row, column))
    return f'<td>{caption}{"<br>" if caption else ""}<img alt="" src="{_data_url(page.rows[row][column])}"></td>'


def _data_url(panel: Panel) -> str:
    buffer = io.BytesIO()
    Image.fromarray(panel.picture).save(buffer, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
