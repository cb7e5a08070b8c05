"""Pages of pictures and text: one row per image, as PNG and as HTML that needs no other file."""

import base64
import html
import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.errors import printable
from pipeline.extras import extra
from pipeline.files import replacing, write_text

with extra("plots"):
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

PICTURE_WIDTH, TEXT_WIDTH = 1.9, 2.4
"""Widths of columns of pictures and of text, in inches."""
TEXT_CHARACTERS, LEAST_CHARACTERS = 50, 20
"""Characters in a line of the widest and of the narrowest column of text."""
SMALL, LARGE = 6, 8
"""Font sizes in points. A column whose texts are all short has the large one."""
FEW_LINES, FEW_CHARACTERS = 6, 36
"""Most lines of a short text, and most characters in its lines."""
HEADING, LEGEND, OWNER = 0.3, 0.4, 0.25
"""Heights of a section's heading, of its legend, and of the line with the owners of columns, in inches."""


Content = np.ndarray | Sequence[str]
"""A picture uint8 [H, W, 3], or lines of text."""


@dataclass(frozen=True)
class Panel:
    """One cell of a row. owner: for instance its task, where a row has panels of several."""

    content: Content
    caption: str
    owner: str = ""


@dataclass(frozen=True)
class Section:
    """Rows with the same number and kinds of panels. legend: name -> its colour, uint8 [3]."""

    rows: list[list[Panel]]
    legend: dict[str, np.ndarray] = field(default_factory=dict)
    heading: str = ""

    def caption(self, row: int, column: int) -> str:
        """Caption of a panel; empty where the row above has the same."""
        own = self.rows[row][column].caption
        return "" if row and own == self.rows[row - 1][column].caption else own

    def owner(self, row: int, column: int) -> str:
        """Owner of a panel, in the first row at the owner's first column; else empty."""
        own = self.rows[row][column].owner
        return "" if row or (column and own == self.rows[row][column - 1].owner) else own

    @property
    def widths(self) -> list[float]:
        """Widths of the columns in inches; the longest line decides on that of a text."""
        return [_width([row[j].content for row in self.rows]) for j in range(len(self.rows[0]))]

    @property
    def points(self) -> list[int]:
        """Font sizes of the columns, in points."""
        return [_points([row[j].content for row in self.rows]) for j in range(len(self.rows[0]))]

    @property
    def heights(self) -> list[float]:
        """Heights of the rows in inches."""
        return list(map(_height, self.rows))

    @property
    def height(self) -> float:
        """Height of the section in inches."""
        owned = any(panel.owner for panel in self.rows[0])
        return (
            sum(self.heights)
            + (HEADING if self.heading else 0)
            + (LEGEND if self.legend else 0)
            + (OWNER if owned else 0)
        )


@dataclass(frozen=True)
class Page:
    """A title, and a section per kind of rows."""

    title: str
    sections: Sequence[Section]


def write_png(page: Page, path: Path) -> Path:
    width = max(sum(section.widths) for section in page.sections)
    heights = [section.height for section in page.sections]
    figure = Figure(figsize=(width, sum(heights) + 0.6), layout="constrained")
    figure.suptitle(printable(page.title), fontsize=8, x=0.01, ha="left")
    parts = figure.subfigures(len(page.sections), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, section in zip(parts, page.sections, strict=True):
        _draw_section(part, section, width)
    with replacing(path) as part:
        figure.savefig(part, dpi=120)
    return path


def _draw_section(figure: Any, section: Section, width: float) -> None:
    """Draws a section. width: that of the page in inches; a narrower section is filled up to it."""
    if section.heading:
        figure.suptitle(section.heading, fontsize=9, x=0.01, ha="left", weight="bold")
    rest = width - sum(section.widths)
    widths = [*section.widths, rest] if rest > 0.01 else section.widths
    grid = figure.subplots(
        len(section.rows), len(widths), squeeze=False, width_ratios=widths, height_ratios=section.heights
    )
    for axes in grid.flat:
        axes.axis("off")
    for i, row in enumerate(section.rows):
        for j, panel in enumerate(row):
            _draw(panel.content, grid[i, j], section.points[j])
            grid[i, j].set_title(printable(section.caption(i, j)), fontsize=8)
            if owner := section.owner(i, j):
                above = dict(
                    xytext=(0, 18),
                    textcoords="offset points",
                    ha="left",
                    va="bottom",
                    fontsize=9,
                    weight="bold",
                )
                grid[i, j].annotate(owner, (0, 1), xycoords="axes fraction", annotation_clip=False, **above)
    if section.legend:
        patches = [
            Patch(color=tuple(colour / 255), label=printable(name)) for name, colour in section.legend.items()
        ]
        columns = max(1, 2 * len(section.widths))
        figure.legend(handles=patches, loc="outside lower left", ncols=columns, fontsize=7, frameon=False)


def _height(row: Sequence[Panel]) -> float:
    """Height of a row in inches: its tallest picture and a caption."""
    tallest = max(
        (
            panel.content.shape[0] / panel.content.shape[1]
            for panel in row
            if isinstance(panel.content, np.ndarray)
        ),
        default=1.0,
    )
    return (PICTURE_WIDTH - 0.25) * tallest + 0.2


def _width(column: Sequence[Content]) -> float:
    """Width of a column in inches."""
    if isinstance(column[0], np.ndarray):
        return PICTURE_WIDTH
    longest = max(LEAST_CHARACTERS, *(len(text) for content in column for text in content))
    return TEXT_WIDTH * min(1.0, longest / TEXT_CHARACTERS) * _points(column) / SMALL


def _points(column: Sequence[Content]) -> int:
    few = not isinstance(column[0], np.ndarray) and all(
        len(content) <= FEW_LINES and all(len(text) <= FEW_CHARACTERS for text in content)
        for content in column
    )
    return LARGE if few else SMALL


def _draw(content: Content, axes: Any, points: int) -> None:
    """Draws a picture or text. points: font size of text."""
    axes.set_anchor("N")
    if isinstance(content, np.ndarray):
        axes.imshow(content)
        return
    lines = [textwrap.fill(printable(text), TEXT_CHARACTERS, subsequent_indent="  ") for text in content]
    axes.text(0, 1, "\n".join(lines), fontsize=points, va="top", parse_math=False, transform=axes.transAxes)


def write_html(page: Page, path: Path) -> Path:
    style = (
        "body{font:14px "
        "sans-serif;margin:2em}td{padding:4px;vertical-align:bottom}h2{font-size:15px;margin:2em 0 0}"
    )
    style += "p{max-width:16em;margin:0 0 .5em}i{display:inline-block;width:1em;height:1em}"
    text = (
        f"<!doctype html><meta charset=utf-8><title>{_escaped(page.title)}</title><style>{style}</style>"
        f"<h1 style='font-size:16px'>{_escaped(page.title)}</h1>{''.join(map(_html_section, page.sections))}"
    )
    return write_text(path, text)


def _escaped(text: str) -> str:
    return html.escape(printable(text))


def _html_section(section: Section) -> str:
    heading = f"<h2>{_escaped(section.heading)}</h2>" if section.heading else ""
    keys = " &ensp; ".join(
        f"<i style='background:rgb{tuple(map(int, c))}'></i> {_escaped(name)}"
        for name, c in section.legend.items()
    )
    rows = ("".join(_cell(section, i, j) for j in range(len(row))) for i, row in enumerate(section.rows))
    table = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"{heading}<p style='max-width:none'>{keys}</p><table>{table}</table>"


def _cell(section: Section, row: int, column: int) -> str:
    owner, caption = _escaped(section.owner(row, column)), _escaped(section.caption(row, column))
    content = section.rows[row][column].content
    if isinstance(content, np.ndarray):
        shown = f'<img alt="" src="{_data_url(content)}">'
    else:
        shown = "".join(f"<p>{_escaped(text)}</p>" for text in content)
    return f"<td>{f'<b>{owner}</b><br>' if owner else ''}{caption}{'<br>' if caption else ''}{shown}</td>"


def _data_url(picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
