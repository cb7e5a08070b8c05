"""The groups of a page's samples as a GIF: one picture for each block."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from launch.pictures.page import Page, Row
from pipeline.drawing.panels import Panel
from pipeline.errors import printable
from pipeline.files import replacing

WIDTH, GAP, LINE = 168, 12, 18
"""Pixels: width of a picture, room between pictures, height of a line of text."""
SHORT, LONG = 700, 2200
"""Milliseconds of a block, and of the last one."""
INK, FAINT, PAPER = (26, 26, 26), (92, 92, 92), (255, 255, 255)


def write_gif(page: Page, path: Path) -> Path:
    """page: its rows have a film, of the same number of blocks."""
    rows = [row for section in page.sections for row in section.rows]
    frames = [_frame(rows, block) for block in range(len(rows[0].film))]
    durations = [SHORT] * (len(frames) - 1) + [LONG]
    with replacing(path) as part:
        frames[0].save(
            part,
            format="gif",
            save_all=True,
            append_images=frames[1:],
            duration=durations,
            loop=0,
            disposal=1,
        )
    return path


def _frame(rows: Sequence[Row], block: int) -> Image.Image:
    """One picture: a line for each sample, with the image and its groups after a block."""
    lines = [[row.panels[0], *row.film[block]] for row in rows]
    heights = [max(_height(panel) for panel in line) for line in lines]
    width = max(map(len, lines)) * (WIDTH + GAP) + GAP
    sheet = Image.new("RGB", (width, sum(heights) + len(rows) * (2 * LINE + GAP) + GAP), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    top = GAP
    for line, height in zip(lines, heights, strict=True):
        for i, panel in enumerate(line):
            left = GAP + i * (WIDTH + GAP)
            pen.text((left, top), _short(panel.owner), INK, font)
            pen.text((left, top + LINE), _short(panel.caption), FAINT, font)
            sheet.paste(_picture(panel).resize((WIDTH, _height(panel))), (left, top + 2 * LINE))
        top += height + 2 * LINE + GAP
    return sheet.quantize(256, dither=Image.Dither.NONE)


def _picture(panel: Panel) -> Image.Image:
    return Image.fromarray(cast(np.ndarray, panel.content))


def _height(panel: Panel) -> int:
    height, width = cast(np.ndarray, panel.content).shape[:2]
    return max(1, round(WIDTH * height / width))


def _short(text: str) -> str:
    """The text in letters that the font has, no wider than a picture."""
    plain = printable(text).encode("ascii", "backslashreplace").decode()
    return plain if len(plain) <= 28 else plain[:25] + "..."
