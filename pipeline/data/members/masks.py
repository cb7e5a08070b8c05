"""Labels of masks, which are uint8: label k is class k, 255 is ignored."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IGNORED = 255
BAR = 30
"""Characters of the longest bar of a histogram."""


def label_counts(mask: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Pixels of each label, int64 [256]."""
    return np.bincount(mask.ravel(), minlength=256)


def all_known(mask: NDArray[np.uint8], num_classes: int) -> bool:
    """Whether each label is a class or 255. Much cheaper than to count them."""
    # 255 becomes 0, and any other label one more
    return int((mask + np.uint8(1)).max(initial=0)) <= num_classes


def strange_labels(counts: NDArray[np.int64], num_classes: int) -> str:
    """A sentence about the labels of a mask that are neither a class nor 255; empty where there are none.
    counts: int64 [256], see `label_counts`."""
    strange = np.flatnonzero(counts[num_classes:IGNORED]) + num_classes
    if not len(strange):
        return ""
    labels = ", ".join(f"{label} ({counts[label]} pixels)" for label in strange[:5]) + (
        ", ..." if len(strange) > 5 else ""
    )
    return (
        f"mask has label {labels}: not one of the {num_classes} classes that the manifest names for "
        f"masks, nor {IGNORED} (ignored)"
    )


def size_mismatch(image: Sequence[int], mask: Sequence[int]) -> str:
    """A sentence about an image and a mask of different (height, width)."""
    return f"mask has {mask[0]}x{mask[1]} pixels (height x width) and its image {image[0]}x{image[1]}"


@dataclass(frozen=True)
class LabelHistogram:
    """How often each label occurs. Histograms add over shards."""

    pixels: NDArray[np.int64]
    """[256]: pixels of each label."""
    samples: NDArray[np.int64]
    """[256]: samples in which the label occurs."""
    num_samples: int = 0

    @classmethod
    def empty(cls) -> "LabelHistogram":
        return cls(np.zeros(256, dtype=np.int64), np.zeros(256, dtype=np.int64))

    def __add__(self, other: "LabelHistogram") -> "LabelHistogram":
        return LabelHistogram(
            self.pixels + other.pixels, self.samples + other.samples, self.num_samples + other.num_samples
        )

    def with_mask(self, counts: NDArray[np.int64]) -> "LabelHistogram":
        return self + LabelHistogram(counts, (counts > 0).astype(np.int64), 1)

    def drawn(self, names: Sequence[str]) -> list[str]:
        """A line for each class, and for each other label that occurs: label, name, percentage of the pixels
        and of the masks, and a bar."""
        shown = [label for label in range(256) if label < len(names) or self.pixels[label]]
        title = {label: name for label, name in enumerate(names)} | {IGNORED: "(ignored)"}
        width = max((len(title.get(label, "")[:40]) for label in shown), default=0)
        shares = self.pixels / max(1, self.pixels.sum())
        lines = [f"{'label':>5}  {'class':<{width}}  pixels   masks"]
        for label in shown:
            in_masks = self.samples[label] / max(1, self.num_samples)
            bar = "#" * round(BAR * shares[label] / max(shares.max(), 1e-12))
            name = title.get(label, "(not a class)")[:40]
            lines.append(
                f"{label:>5}  {name:<{width}}  {shares[label]:6.2%}  {in_masks:6.1%}  {bar}".rstrip()
            )
        return lines
