"""Letters that a picture can show: fonts of this machine for what matplotlib's own lacks."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache

from pipeline.errors import printable
from pipeline.extras import extra

with extra("plots"):
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

log = logging.getLogger(__name__)
# that a font has no bold letters is said for each text
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
OWN = "DejaVu Sans"
"""It comes with matplotlib."""
SHOWN = 12
"""Most letters that a warning names."""


@dataclass(frozen=True)
class Letters:
    """families: fonts in the order in which a letter is looked for, for matplotlib's `font.family`. lacking:
    letters that none of them has."""

    families: list[str] = field(default_factory=lambda: [OWN])
    lacking: frozenset[str] = frozenset()

    def __call__(self, text: str) -> str:
        """The text as one line, with letters that cannot be drawn as escapes."""
        return "".join(
            char.encode("unicode_escape").decode() if char in self.lacking else char
            for char in printable(text)
        )


def letters_for(texts: Iterable[str]) -> Letters:
    """Fonts for all of the texts. Warns of letters that no font of this machine has."""
    own = _letters(font_manager.findfont(OWN))
    needed = {char for text in texts for char in printable(text) if ord(char) not in own and char != "\n"}
    if not needed:
        return Letters()
    fonts, families = {entry.fname: entry.name for entry in font_manager.fontManager.ttflist}, [OWN]
    while needed and fonts:
        gains = {path: {char for char in needed if ord(char) in _letters(path)} for path in fonts}
        best = max(sorted(gains), key=lambda path: len(gains[path]))
        if not gains[best]:
            break
        families.append(fonts.pop(best))
        needed -= gains[best]
    if needed:
        named = " ".join(sorted(needed)[:SHOWN])
        log.warning(
            "no font on this machine has %s%s, so the picture has escapes in their place; install one, for "
            "instance the package fonts-noto-cjk",
            *(named, "" if len(needed) <= SHOWN else f" and {len(needed) - SHOWN} more"),
        )
    return Letters(families, frozenset(needed))


@cache
def _letters(path: str) -> frozenset[int]:
    """Code points that a font file has; none of a file that cannot be read."""
    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()
