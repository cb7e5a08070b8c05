"""Pictures of segmentations. H x W pixels of the picture, h x w of a mask, K classes."""

import numpy as np
from numpy.typing import NDArray

from pipeline.data.members.masks import IGNORED
from pipeline.drawing.palette import WRONG

OPACITY = 0.75
FOUND = 0.5
"""Intersection over union from which a class counts as found."""

Labels = NDArray[np.integer]
"""[h, w]: number of a class, or 255 where none counts."""


def paint_classes(
    picture: np.ndarray, labels: Labels, colours: NDArray[np.uint8], ground: int | None
) -> NDArray[np.uint8]:
    """The picture [H, W, 3] uint8 in grey, and over it the colours [K, 3] of its labels, which may have
    another size. The background and pixels of no class stay clear."""
    labels = _stretched(labels, picture.shape[:2])
    known = labels < len(colours)
    if ground is not None:
        known &= labels != ground
    painted = _grey(picture)
    painted[known] = OPACITY * colours[labels[known]] + (1 - OPACITY) * painted[known]
    return painted.round().astype(np.uint8)


def paint_errors(picture: np.ndarray, predicted: Labels, reference: Labels) -> NDArray[np.uint8]:
    """The picture in pale grey, and in red the pixels whose prediction is not the reference. Pixels that do
    not count are white."""
    painted = (255 + _grey(picture)) / 2
    painted[_stretched(wrong_pixels(predicted, reference), picture.shape[:2])] = WRONG
    painted[_stretched(reference == IGNORED, picture.shape[:2])] = 255
    return painted.round().astype(np.uint8)


def wrong_pixels(predicted: Labels, reference: Labels) -> NDArray[np.bool_]:
    """[h, w]: where the reference counts and the prediction is another."""
    return (predicted != reference) & (reference != IGNORED)


def share_wrong(predicted: Labels, reference: Labels) -> float:
    """Share of the pixels that count whose prediction is wrong; 0 where none counts."""
    return float(wrong_pixels(predicted, reference).sum() / max(1, (reference != IGNORED).sum()))


def classes_found(predicted: Labels, reference: Labels, ground: int | None) -> tuple[int, int]:
    """Number of the reference's classes that are found, and of all of them; the background is none."""
    counts, found, there = reference != IGNORED, 0, 0
    for label in np.unique(reference[counts]):
        if label != ground:
            own, other = reference == label, (predicted == label) & counts
            there += 1
            found += bool((own & other).sum() >= FOUND * (own | other).sum())
    return found, there


def _grey(picture: np.ndarray) -> NDArray[np.float64]:
    """[H, W, 3] between mid grey and white, so that every colour of a class stands out."""
    light = picture @ np.array([0.299, 0.587, 0.114])
    return np.repeat((110 + light * 135 / 255)[..., None], 3, axis=-1)


def _stretched(values: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """[h, w] -> [H, W], each pixel the nearest."""
    (height, width), (rows, columns) = size, values.shape
    return values[np.arange(height) * rows // height][:, np.arange(width) * columns // width]
