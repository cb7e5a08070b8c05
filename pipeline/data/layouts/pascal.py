"""PASCAL VOC 2012, and sets laid out like it: images, masks of classes, and a list of names for each split.

The lists decide: files that none of them names are left out (most of VOC's pictures have no mask). The
classes are VOC's 21, background among them, or those of a `classes.json` in SRC; 255, VOC's contours, is
ignored.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.data.layouts.class_lists import CLASSES, parse_names
from pipeline.data.layouts.images_with_masks import Layout, Pair, non_empty, paired, root_with
from pipeline.data.layouts.picture_files import pictures_of, plain_key
from pipeline.data.members.masks import IGNORED
from pipeline.errors import SampleError

log = logging.getLogger(__name__)
IMAGES, MASKS, LISTS = "JPEGImages", "SegmentationClass", "ImageSets/Segmentation"
SPLITS = ("train", "val", "test")
TREE = f"SRC/{IMAGES}/*.jpg, SRC/{MASKS}/*.png and SRC/{LISTS}/{{train,val,test}}.txt"
VOC = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "dining table",
    "dog",
)
VOC += ("horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv/monitor")


def read(source: Path) -> Layout:
    root = root_with(source, (IMAGES, MASKS, LISTS), "VOC2012", "VOCdevkit/VOC2012")
    images, masks = pictures_of(root / IMAGES), pictures_of(root / MASKS, suffixes=[".png"])
    splits = {split: _listed(root / LISTS / f"{split}.txt", images, masks) for split in SPLITS}
    listed = {pair.key for pairs in splits.values() for pair in pairs}
    if left := images.keys() - listed:
        with_masks = len(left & masks.keys())
        log.info(
            "left out: %d of %d pictures, %d of them with a mask, which no list names",
            len(left),
            len(images),
            with_masks,
        )
    own = root / CLASSES
    classes = (parse_names(str(own), own.read_bytes()).classes if own.is_file() else ()) or VOC
    labels = {label: label for label in (*range(len(classes)), IGNORED)}
    return Layout(classes, labels, non_empty(source, splits, TREE))


def _listed(path: Path, images: Mapping[str, Path], masks: Mapping[str, Path]) -> Sequence[Pair]:
    """The pairs that a list names, one a line; none where there is no such list."""
    lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
    keys = dict.fromkeys(plain_key(line.strip()) for line in lines if line.strip())
    if path.stem == "test" and not any(key in masks for key in keys):
        log.warning("left out: the %d pictures of %s, which have no masks", len(keys), path)
        return []
    if unknown := [key for key in keys if key not in images and key not in masks]:
        raise SampleError(
            f"{path} names '{unknown[0]}' ({len(unknown)} such lines), which has no image and no mask; "
            "add both, or cut it"
        )
    return paired(
        {key: images[key] for key in keys if key in images}, {key: masks[key] for key in keys if key in masks}
    )
