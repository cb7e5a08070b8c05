"""CamVid in the form that came with SegNet: 11 classes. Label 11 is everything else, and ignored."""

from pathlib import Path

from pipeline.data.layouts.images_with_masks import Layout, non_empty, paired
from pipeline.data.layouts.picture_files import folders_of, pictures_of, tell_left_out
from pipeline.data.members.masks import IGNORED

CLASSES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)
SPLITS = ("train", "val", "test")
TREE = "SRC/{train,val,test}/*.png and SRC/{trainannot,valannot,testannot}/*.png"


def read(source: Path) -> Layout:
    splits = {
        split: paired(pictures_of(source / split), pictures_of(source / f"{split}annot", suffixes=[".png"]))
        for split in SPLITS
    }
    known = {*SPLITS, *(f"{split}annot" for split in SPLITS)}
    tell_left_out([path for path in folders_of(source) if path.name not in known])
    labels = {label: label for label in range(len(CLASSES))} | {len(CLASSES): IGNORED}
    return Layout(CLASSES, labels, non_empty(source, splits, TREE))
