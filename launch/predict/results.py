"""What a model says of an image. H x W pixels of the image, h x w patches of what the model saw of it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Groups:
    """What was merged in an image. seen: uint8 [height, width, 3], the image as the model saw it. slots:
    int64 [h, w], the number of the token that holds each patch after the last block. patch: (height, width)
    in pixels. num_tokens: those left after the last block, with prefix tokens."""

    seen: NDArray[np.uint8]
    slots: NDArray[np.int64]
    patch: tuple[int, int]
    num_tokens: int


@dataclass(frozen=True)
class Prediction:
    """image: its path, or `image 3` for the fourth one that is no file. task: the run's, or `classification`
    for a published model. size: (height, width) of the image. groups: None where they were not asked for."""

    image: str
    task: str
    size: tuple[int, int]
    groups: Groups | None


@dataclass(frozen=True)
class Classes(Prediction):
    """The most likely classes, the first one first: their numbers, their names (the numbers as text where no
    names are known), and their probabilities."""

    labels: tuple[int, ...]
    names: tuple[str, ...]
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class SeveralClasses(Classes):
    """Of an image that has any number of classes: each has a probability of its own, and those from
    `threshold` on are predicted."""

    threshold: float

    @property
    def num_predicted(self) -> int:
        return sum(share >= self.threshold for share in self.probabilities)


@dataclass(frozen=True)
class Caption(Prediction):
    text: str


@dataclass(frozen=True)
class Mask(Prediction):
    """labels: uint8 [H, W], the class of each pixel. classes: the names of all classes; empty where none are
    known."""

    labels: NDArray[np.uint8]
    classes: tuple[str, ...]

    @property
    def shares(self) -> dict[int, float]:
        """Class -> its share of the pixels, the largest first; without classes that no pixel has."""
        found, counts = np.unique(self.labels, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return {int(found[i]): float(counts[i] / self.labels.size) for i in order}

    def name(self, label: int) -> str:
        return self.classes[label] if label < len(self.classes) else str(label)


@dataclass(frozen=True)
class Unread:
    """An image that could not be read, and why."""

    image: str
    reason: str
