"""ADE20K as the scene parsing challenge of 2016 published it: 150 classes from 1 on. Label 0 is everything
else, and ignored."""

import re
from pathlib import Path

from pipeline.data.layouts.images_with_masks import Layout, non_empty, paired, root_with
from pipeline.data.layouts.picture_files import folders_of, pictures_of, tell_left_out
from pipeline.data.members.masks import IGNORED
from pipeline.errors import SampleError

NUM_CLASSES = 150
SPLITS = {"train": "training", "val": "validation"}
TREE = "SRC/{images,annotations}/{training,validation}/*"
NAMES = "objectInfo150.txt"
_LINE = re.compile(r"\s*(\d+)\s+[\d.]+\s+\d+\s+\d+\s+(?:\d+\s+)?(\S.*?)\s*")
"""A line of NAMES: index, part of the pixels, training images, validation images, in one edition stuff or
thing, and the name."""


def read(source: Path) -> Layout:
    root = root_with(source, ("images", "annotations"), "ADEChallengeData2016")
    splits = {
        split: paired(
            pictures_of(root / "images" / folder),
            pictures_of(root / "annotations" / folder, suffixes=[".png"]),
        )
        for split, folder in SPLITS.items()
    }
    tell_left_out(
        [
            path
            for kind in ("images", "annotations")
            for path in folders_of(root / kind)
            if path.name not in SPLITS.values()
        ]
    )
    labels = {0: IGNORED} | {label: label - 1 for label in range(1, NUM_CLASSES + 1)}
    return Layout(_names(root / NAMES), labels, non_empty(source, splits, TREE))


def _names(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return tuple(f"label {label}" for label in range(1, NUM_CLASSES + 1))
    lines = (_LINE.fullmatch(line) for line in path.read_text(encoding="utf-8").splitlines())
    names = {int(line[1]): line[2] for line in lines if line}
    if sorted(names) != list(range(1, NUM_CLASSES + 1)):
        raise SampleError(
            f"{path} does not name the classes 1 to {NUM_CLASSES}; restore it, or remove it to have "
            "them numbered"
        )
    return tuple(names[label] for label in sorted(names))
