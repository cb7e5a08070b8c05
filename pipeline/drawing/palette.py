"""Colours of classes, and of right and wrong."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

RIGHT, WRONG = (0, 110, 80), (190, 50, 0)
"""Green and red with enough contrast on white. A sign stands beside them."""
CLEAR = (225, 225, 225)
"""What a legend shows for the background, over which no colour is laid."""
GROUNDS = frozenset({"background", "ground", "void", "unlabeled", "unlabelled", "nothing"})
"""Names of a class that is all that no other class is."""
FIRST = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442")
"""The colours of Okabe and Ito."""
STEPS = 15
"""Numbers of each channel from which further colours are chosen."""
_LINEAR_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_CONES_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
"""Oklab, in which a distance is about as large as it looks."""
_DEUTERANOPIA = np.array(
    [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ]
)
"""Linear RGB as it looks without the cones of medium waves (Machado et al., 2009)."""


def ground_of(classes: Sequence[str]) -> int | None:
    """The number of the class that is the background; None where none has such a name."""
    return next((i for i, name in enumerate(classes) if name.strip().lower() in GROUNDS), None)


def class_colours(count: int, ground: int | None = None) -> NDArray[np.uint8]:
    """[count, 3], the same in every run. ground: number of the background, which is CLEAR and takes none of
    the colours."""
    colours = _distinct(max(0, count - (ground is not None)))
    return colours if ground is None else np.insert(colours, ground, CLEAR, axis=0)


@lru_cache
def _distinct(count: int) -> NDArray[np.uint8]:
    """[count, 3]: each colour is the one that is farthest from all before it, for usual and for colour-blind
    eyes. So the first of many are those of a few."""
    first = np.array([[int(text[i : i + 2], 16) for i in (1, 3, 5)] for text in FIRST], dtype=np.uint8)
    levels = np.linspace(0, 255, STEPS).round().astype(np.uint8)
    others = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _oklab(_linear(others))
    # no colour that is black, white or grey on a grey picture
    others = others[(lab[:, 0] > 0.4) & (lab[:, 0] < 0.93) & (np.hypot(lab[:, 1], lab[:, 2]) > 0.08)]
    places, chosen = _seen(others), list(first[:count])
    nearest = _distances(places, _seen(first)).min(axis=1)
    while len(chosen) < count:
        farthest = int(nearest.argmax())
        chosen.append(others[farthest])
        nearest = np.minimum(nearest, _distances(places, places[farthest : farthest + 1])[:, 0])
    return np.array(chosen, dtype=np.uint8).reshape(count, 3)


def _linear(colours: NDArray[np.uint8]) -> NDArray[np.float64]:
    """sRGB [K, 3] as linear RGB in [0, 1]."""
    values = colours / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _oklab(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.cbrt(linear.clip(0) @ _LINEAR_TO_CONES.T) @ _CONES_TO_LAB.T


def _seen(colours: NDArray[np.uint8]) -> NDArray[np.float64]:
    """[K, 2, 3]: Oklab of the colours, for usual eyes and for colour-blind ones."""
    linear = _linear(colours)
    return np.stack([_oklab(linear), _oklab(linear @ _DEUTERANOPIA.T)], axis=1)


def _distances(some: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """[K, L]: distance of colours for those who see the smaller one; half of it counts for colour-blind
    eyes, for which many colours have to share fewer dimensions."""
    gaps = np.linalg.norm(some[:, None] - others[None], axis=-1)
    return np.minimum(gaps[..., 0], 2 * gaps[..., 1])
