"""A page with a text everywhere where a page has text."""

import numpy as np

from launch.pictures.page import Page, Row, Section
from pipeline.drawing.panels import Line, Panel, Text


def page_of(text: str, picture: np.ndarray | None = None) -> Page:
    """One sample of two tasks. picture: uint8 [H, W, 3]; None: one of 2 x 2 pixels."""
    picture = np.zeros((2, 2, 3), dtype=np.uint8) if picture is None else picture
    lines = (
        Line(text, text, right=True, merged=True),
        Line(text, text, right=False, merged=False),
        Line(text),
    )
    panels = [Panel(picture, text, text), Panel(Text(lines, (text,), text), text, text)]
    panels.append(Panel(Text(lines, (text, text), text), text, text))
    row = Row(text, panels, right=False, changed=True)
    return Page(text, [Section([row], {text: picture[0, 0]}, text)], [text], {text: text})
