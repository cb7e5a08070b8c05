"""Letters that matplotlib's own font lacks: another font has them, or an escape stands there."""

import warnings

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from textpage import page_of

from launch.pictures.png_page import write_png
from launch.report.fonts import OWN, letters_for

LETTER = "猫"


@pytest.fixture
def plain(monkeypatch):
    """A machine with no fonts but one that comes with matplotlib."""
    own = [entry for entry in font_manager.fontManager.ttflist if entry.name == OWN]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)


@pytest.fixture
def font(plain, tmp_path):
    """The name of a font with one letter, which the machine has beside."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    pen.lineTo((500, 0))
    pen.lineTo((250, 700))
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "mine"])
    builder.setupCharacterMap({ord(LETTER): "mine"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "mine": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (500, 0), "mine": (500, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Of One Letter", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "mine.ttf")
    font_manager.fontManager.addfont(str(tmp_path / "mine.ttf"))
    return "Of One Letter"


def test_a_font_of_the_machine_draws_what_the_own_one_lacks(font, tmp_path):
    letters = letters_for([f"a{LETTER}"])
    assert letters.families == [OWN, font] and letters(f"a{LETTER}") == f"a{LETTER}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shown = write_png(page_of(LETTER, np.zeros((8, 8, 3), dtype=np.uint8)), tmp_path / "a.png")
    assert shown.stat().st_size > 1000


def test_a_letter_that_no_font_has_is_an_escape_and_is_told_once(plain, tmp_path, caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_png(page_of(LETTER), tmp_path / "a.png")
    assert caplog.text.count("no font on this machine has") == 1 and "fonts-noto-cjk" in caplog.text
    assert letters_for([LETTER])(f"a{LETTER}") == r"a\u732b"


def test_usual_letters_need_no_other_font():
    assert letters_for(["Straße 5 % ✓ ✗", "кот"]).families == [OWN]
