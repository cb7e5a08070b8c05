"""Pictures of masks and of their errors."""

import numpy as np
import pytest

from pipeline.drawing.masks import classes_found, paint_classes, paint_errors, share_wrong
from pipeline.drawing.palette import WRONG, class_colours

PICTURE = np.full((4, 6, 3), 100, dtype=np.uint8)


def test_background_and_ignored_pixels_stay_clear_and_masks_of_another_size_are_stretched():
    labels = np.array([[0, 1, 255]], dtype=np.uint8)
    painted = paint_classes(PICTURE, labels, class_colours(2, ground=0), 0)
    clear = painted[:, [0, 1, 4, 5]].reshape(-1, 3)
    assert (clear == clear[0]).all() and len(set(clear[0])) == 1
    blue = class_colours(1)[0]
    assert (painted[:, 2:4] == (0.75 * blue + 0.25 * clear[0]).round()).all()


def test_errors_are_red_where_the_reference_counts():
    predicted, reference = np.array([[0, 1, 1]]), np.array([[0, 0, 255]])
    painted = paint_errors(PICTURE, predicted, reference)
    assert (painted[:, 2:4] == WRONG).all() and (painted[:, 4:] == 255).all()
    assert not (painted[:, :2] == WRONG).all(axis=-1).any()
    assert share_wrong(predicted, reference) == 0.5 and share_wrong(predicted, np.full((1, 3), 255)) == 0


@pytest.mark.parametrize(
    ("predicted", "found"),
    [([0, 1, 1, 2], (2, 2)), ([0, 1, 0, 2], (2, 2)), ([0, 1, 1, 1], (1, 2)), ([0, 0, 0, 2], (1, 2))],
)
def test_a_class_is_found_where_half_of_it_is_its_own(predicted, found):
    reference = np.array([[0, 1, 1, 2, 255]])
    assert classes_found(np.array([[*predicted, 1]]), reference, ground=0) == found
