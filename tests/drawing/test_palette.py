"""Colours of classes: apart from one another, the same in every run, and none over the background."""

import numpy as np
import pytest

from pipeline.drawing.palette import CLEAR, FIRST, RIGHT, WRONG, class_colours, ground_of


@pytest.mark.parametrize(("count", "least"), [(7, 60), (20, 40), (150, 14), (255, 10)])
def test_all_classes_have_colours_that_are_apart(count, least):
    colours = class_colours(count).astype(int)
    gaps = np.linalg.norm(colours[:, None] - colours[None], axis=-1) + 1000 * np.eye(count)
    assert gaps.min() > least


def test_few_classes_have_the_colours_of_okabe_and_ito_and_more_classes_change_none():
    assert ["#{:02x}{:02x}{:02x}".format(*colour) for colour in class_colours(7)] == list(FIRST)
    assert (class_colours(150)[:20] == class_colours(20)).all() and class_colours(0).shape == (0, 3)


def test_no_class_looks_like_the_grey_picture_below_it():
    colours = class_colours(255).astype(int)
    assert (colours.max(axis=1) - colours.min(axis=1)).min() > 30


def test_the_background_takes_none_of_the_colours():
    assert ground_of(["cat", "Background"]) == 1 and ground_of(["cat", "dog"]) is None
    colours = class_colours(4, ground=1)
    assert tuple(colours[1]) == CLEAR and (np.delete(colours, 1, axis=0) == class_colours(3)).all()


@pytest.mark.parametrize("colour", [RIGHT, WRONG])
def test_right_and_wrong_can_be_read_on_white(colour):
    """WCAG's contrast for text, 4.5 to 1."""
    shares = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour)]
    light = 0.2126 * shares[0] + 0.7152 * shares[1] + 0.0722 * shares[2]
    assert 1.05 / (light + 0.05) > 4.5
