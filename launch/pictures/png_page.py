"""A page of samples as one PNG."""

from pathlib import Path
from typing import Any

import numpy as np

from launch.pictures.flow import LETTERS, Flow, Placed, Styled, flow, lines_of
from launch.pictures.page import RIGHT_SIGN, WRONG_SIGN, Page, Section, texts_of
from launch.report.fonts import Letters, letters_for
from pipeline.drawing.palette import RIGHT, WRONG
from pipeline.drawing.panels import Panel
from pipeline.extras import extra
from pipeline.files import replacing

with extra("plots"):
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle

WIDTH, MARGIN, DPI = 11.2, 0.16, 125
"""Most inches of a row, inches around a page, and pixels per inch."""
HEAD, FACT, HEADING, LEGEND, NAME, BETWEEN = 0.28, 0.19, 0.3, 0.2, 0.2, 0.26
"""Heights of the title, of a fact, of a section's heading, of a line of a legend, of a sample's name, and
between rows."""
MOST_PIXELS = 60_000
"""Of a side of a file that programs still open."""
INK, FAINT, RULE = "#1a1a1a", "#5c5c5c", "#dddddd"
KEY = 1.35
"""Inches of one entry of a legend."""


def write_png(page: Page, path: Path) -> Path:
    letters = letters_for([*texts_of(page), RIGHT_SIGN + WRONG_SIGN])
    with matplotlib.rc_context({"font.family": letters.families, "svg.hashsalt": "dtem"}):
        figure = _Sheet(page, letters).figure
        with replacing(path) as part:
            figure.savefig(part, dpi=DPI)
    return path


class _Sheet:
    """A page on which is written from the top to the bottom. figure: when all is drawn."""

    def __init__(self, page: Page, letters: Letters):
        flows = [[flow(row, WIDTH) for row in section.rows] for section in page.sections]
        self._letters = letters
        self._inner = max([own.width for flows_ in flows for own in flows_] + [4.0])
        self._width = self._inner + 2 * MARGIN
        columns = max(1, int(self._inner / KEY))
        self._height = 2 * MARGIN + HEAD + FACT * len(page.facts)
        for section, own in zip(page.sections, flows, strict=True):
            self._height += sum(each.height + NAME + BETWEEN for each in own) + HEADING * bool(
                section.heading
            )
            self._height += LEGEND * -(-len(section.legend) // columns)
        self.figure = Figure(figsize=(self._width, min(self._height, MOST_PIXELS / DPI)), facecolor="white")
        self._top = MARGIN
        self._write(page.title, HEAD, size=10.5, weight="bold")
        for fact in page.facts:
            self._write(fact, FACT, size=8, color=FAINT)
        for section, own in zip(page.sections, flows, strict=True):
            self._section(section, own, columns)

    def _write(self, text: str, height: float, **style: Any) -> None:
        self._text(0.0, self._top, text, **style)
        self._top += height

    def _section(self, section: Section, flows: list[Flow], columns: int) -> None:
        if section.heading:
            self._write(section.heading, HEADING, size=10, weight="bold")
        self._legend(section, columns)
        for row, placed in zip(section.rows, flows, strict=True):
            self._top += BETWEEN / 2
            self._rule(self._top - BETWEEN / 4)
            self._write(row.key, NAME, size=7, color=FAINT)
            for panel in placed.placed:
                self._panel(panel)
            self._top += placed.height + BETWEEN / 2

    def _legend(self, section: Section, columns: int) -> None:
        for i, (name, colour) in enumerate(section.legend.items()):
            left, top = i % columns * KEY, self._top + i // columns * LEGEND
            box = Rectangle(
                (left + MARGIN, self._height - top - 0.13),
                *(0.13, 0.13),
                facecolor=tuple(colour / 255),
                edgecolor="#888888",
                linewidth=0.5,
                transform=self.figure.dpi_scale_trans,
            )
            self.figure.add_artist(box)
            self._text(left + 0.18, top, name, size=8)
        self._top += LEGEND * -(-len(section.legend) // columns)

    def _panel(self, placed: Placed) -> None:
        top = self._top + placed.top
        above = top - 0.05 - 0.135 * len(placed.captions)
        if placed.owner:
            self._text(placed.left, above - 0.19, placed.owner, size=8.5, weight="bold")
        for i, caption in enumerate(placed.captions):
            self._text(placed.left, above + 0.135 * i, caption, size=7, color=_colour(placed.panel, FAINT))
        if isinstance(placed.panel.content, np.ndarray):
            left, bottom = placed.left + MARGIN, self._height - top - placed.height
            place = (
                left / self._width,
                bottom / self._height,
                placed.width / self._width,
                placed.height / self._height,
            )
            axes = self.figure.add_axes(place)
            axes.imshow(placed.panel.content, aspect="auto", interpolation="antialiased")
            axes.axis("off")
            return
        for i, line in enumerate(lines_of(placed.panel.content)):
            colour, weight = (INK, "bold") if line.strong else (FAINT, "normal")
            place = placed.left, top + LETTERS * i
            self._text(*place, line.text, weight=weight, color=_colour(line, colour), size=8)

    def _text(
        self, left: float, top: float, text: str, *, size: float, color: str = INK, **style: Any
    ) -> None:
        """Writes a line, whose letters begin at `top`."""
        place = (left + MARGIN) / self._width, 1 - top / self._height
        written = self._letters(text)
        self.figure.text(
            *place, written, va="top", ha="left", size=size, color=color, parse_math=False, **style
        )

    def _rule(self, top: float) -> None:
        y = 1 - top / self._height
        edges = MARGIN / self._width, 1 - MARGIN / self._width
        self.figure.add_artist(Line2D(edges, (y, y), color=RULE, linewidth=0.8))


def _colour(shown: Panel | Styled, usual: str) -> str:
    """Of a text: green or red where it is right or wrong."""
    if shown.right is None:
        return usual
    return "#{:02x}{:02x}{:02x}".format(*(RIGHT if shown.right else WRONG))
