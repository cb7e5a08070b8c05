"""Where the panels of a sample lie on a page of a given width: they flow from left to right, those of one
task together. All lengths are in inches, from the top left corner."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from launch.pictures.page import Row, sign_of
from pipeline.drawing.panels import Panel, Text

PICTURE, TEXT, NARROW, GAP, BETWEEN = 1.42, 2.45, 1.3, 0.09, 0.26
"""Widths of a picture, of a text and of a short one, and room between panels and between tasks."""
CAPTION, LETTERS, OWNER = 0.135, 0.155, 0.2
"""Heights of a line of a caption, of a text, and of the name of a task."""
CAPTION_LETTERS, TEXT_LETTERS, NARROW_LETTERS = 28, 38, 18
"""Characters in a line of a picture's caption, of a text and of a short one."""
FOLDED = 1
"""References that are shown in full; of more their number is said."""


@dataclass(frozen=True)
class Styled:
    """One line of a text. right: as that of `Line`; strong: an answer; else what stands beside one."""

    text: str
    strong: bool = False
    right: bool | None = None


@dataclass(frozen=True)
class Placed:
    """A panel at its place. owner: written above it; empty where the panel to its left has the same. height:
    of the content alone, below `captions`."""

    panel: Panel
    left: float
    top: float
    width: float
    height: float
    owner: str
    captions: Sequence[str]


@dataclass(frozen=True)
class Flow:
    """A row's panels, and the room that they take."""

    placed: Sequence[Placed]
    width: float
    height: float


@dataclass
class _Line:
    """Panels of one line, each with its left edge and with the owner that is written above it. end: where the
    next task would begin."""

    panels: list[tuple[float, Panel, str]] = field(default_factory=list)
    end: float = 0.0

    def add(self, owner: str, panels: Sequence[Panel]) -> None:
        for i, panel in enumerate(panels):
            self.panels.append((self.end, panel, "" if i else owner))
            self.end += width_of(panel) + GAP
        self.end += BETWEEN - GAP


def flow(row: Row, width: float) -> Flow:
    """The panels of a row within the width. A task goes into the first line that has room for it, and is cut
    into several where it is wider than a whole line."""
    lines: list[_Line] = []
    for owner, panels in row.groups:
        for part in _cut(panels, width):
            needed = sum(width_of(panel) + GAP for panel in part) - GAP
            line = next((line for line in lines if line.end + needed <= width), None)
            if line is None:
                line = _Line()
                lines.append(line)
            line.add(owner, part)
    placed: list[Placed] = []
    top = 0.0
    for line in lines:
        found = list(_placed(line, top))
        placed += found
        top = max(own.top + own.height for own in found) + 2 * GAP
    return Flow(placed, max(own.left + own.width for own in placed), top - 2 * GAP)


def _cut(panels: Sequence[Panel], width: float) -> Iterator[list[Panel]]:
    """The panels of a task in parts of at most the width, as equal as can be."""
    each = max(map(width_of, panels)) + GAP
    most = max(1, int((width + GAP) / each))
    num = -(-len(panels) // most)
    size = -(-len(panels) // num)
    for start in range(0, len(panels), size):
        yield list(panels[start : start + size])


def _placed(line: _Line, top: float) -> Iterator[Placed]:
    """The panels of one line, whose contents begin at the same height."""
    captions = [
        textwrap.wrap(sign_of(panel) + panel.caption, CAPTION_LETTERS) or [""] for _, panel, _ in line.panels
    ]
    above = max(len(own) for own in captions) * CAPTION + 0.05
    owned = OWNER if any(panel.owner for _, panel, _ in line.panels) else 0.0
    for (left, panel, owner), own in zip(line.panels, captions, strict=True):
        yield Placed(panel, left, top + owned + above, width_of(panel), _height(panel), owner, own)


def width_of(panel: Panel) -> float:
    """Texts take the room that their longest line needs, from a narrow to a wide column."""
    if isinstance(panel.content, np.ndarray):
        return PICTURE
    longest = max(len(line.text) for line in lines_of(panel.content))
    return TEXT if longest > NARROW_LETTERS else NARROW


def _height(panel: Panel) -> float:
    if isinstance(panel.content, np.ndarray):
        return PICTURE * panel.content.shape[0] / panel.content.shape[1]
    return len(lines_of(panel.content)) * LETTERS


def lines_of(text: Text) -> list[Styled]:
    """The answers, and below them what people say, which is cut short where they say much."""
    lines: list[Styled] = []
    for answer in text.answers:
        if answer.label:
            lines.append(Styled(answer.label))
        marked = sign_of(answer) + answer.text
        lines += [Styled(part, strong=True, right=answer.right) for part in _wrapped(marked)]
    if not text.references:
        return lines
    more = len(text.references) - FOLDED
    heading = f"{text.heading} (1 of {len(text.references)})" if more > 0 else text.heading
    lines.append(Styled(f"{heading}:"))
    return lines + [Styled(part) for part in _wrapped(text.references[0])]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, TEXT_LETTERS) or [""]
