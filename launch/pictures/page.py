"""What a page of samples holds, however it is written: samples with their panels, legends, facts, links."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from pipeline.drawing.panels import Line, Panel, Text

RIGHT_SIGN, WRONG_SIGN = "✓", "✗"


@dataclass(frozen=True)
class Row:
    """One sample. panels: the image first. right, changed: see `Drawing`. film: for each block the pictures
    of the groups after it, where they were asked for."""

    key: str
    panels: Sequence[Panel]
    right: bool | None = None
    changed: bool = False
    film: Sequence[Sequence[Panel]] = ()

    @property
    def groups(self) -> list[tuple[str, list[Panel]]]:
        """Owners and their panels, in order: neighbours of one owner stand together."""
        return [(owner, list(own)) for owner, own in groupby(self.panels, key=lambda panel: panel.owner)]


@dataclass(frozen=True)
class Section:
    """Rows of the same tasks. legend: name -> its colour, uint8 [3]."""

    rows: Sequence[Row]
    legend: dict[str, np.ndarray] = field(default_factory=dict)
    heading: str = ""


@dataclass(frozen=True)
class Page:
    """facts: sentences below the title. links: name -> path from the page's folder."""

    title: str
    sections: Sequence[Section]
    facts: Sequence[str] = ()
    links: dict[str, str] = field(default_factory=dict)


def sign_of(shown: Line | Panel) -> str:
    """The mark of a right and of a wrong answer, with a blank, which stands beside its colour; else empty."""
    return "" if shown.right is None else f"{RIGHT_SIGN if shown.right else WRONG_SIGN} "


def texts_of(page: Page) -> list[str]:
    """All that is written on a page."""
    found = [page.title, *page.facts]
    for section in page.sections:
        found += [section.heading, *section.legend]
        for row in section.rows:
            found.append(row.key)
            for panel in row.panels:
                found += [panel.caption, panel.owner]
                if isinstance(panel.content, Text):
                    text = panel.content
                    found += [text.heading, *text.references]
                    found += [part for line in text.answers for part in (line.text, line.label)]
    return found
