"""Cityscapes with its fine annotations: of the labels 0 to 33, 19 are evaluated; the others are ignored."""

from pathlib import Path

from pipeline.data.layouts.images_with_masks import Layout, non_empty, paired, root_with
from pipeline.data.layouts.picture_files import folders_of, pictures_of, tell_left_out
from pipeline.data.members.masks import IGNORED

IMAGE, MASK = "_leftImg8bit", "_gtFine_labelIds"
BESIDE = ("_color.png", "_instanceIds.png", "_labelTrainIds.png", "_instanceTrainIds.png", "_polygons.json")
"""Endings of the files that hold the same masks in other forms."""
SPLITS = ("train", "val")
"""The masks of `test` are not public."""
TREE = f"SRC/leftImg8bit/{{train,val}}/CITY/*{IMAGE}.png and SRC/gtFine/{{train,val}}/CITY/*{MASK}.png"
EVALUATED = {
    7: "road",
    8: "sidewalk",
    11: "building",
    12: "wall",
    13: "fence",
    17: "pole",
    19: "traffic light",
    20: "traffic sign",
    21: "vegetation",
    22: "terrain",
    23: "sky",
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
"""Maps a stored label to its name, in the order of the classes 0 to 18."""


def read(source: Path) -> Layout:
    root = root_with(source, ("leftImg8bit", "gtFine"), "cityscapes")
    splits = {
        split: paired(_files(root / "leftImg8bit" / split, IMAGE), _files(root / "gtFine" / split, MASK))
        for split in SPLITS
    }
    tell_left_out(
        [
            path
            for kind in ("leftImg8bit", "gtFine")
            for path in folders_of(root / kind)
            if path.name not in SPLITS
        ]
    )
    labels = dict.fromkeys(range(34), IGNORED) | {label: number for number, label in enumerate(EVALUATED)}
    return Layout(tuple(EVALUATED.values()), labels, non_empty(source, splits, TREE))


def _files(folder: Path, ending: str) -> dict[str, Path]:
    """Maps CITY/NAME to its file, for the files of a split that have the ending."""
    files = pictures_of(*folders_of(folder), suffixes=[".png"], nested=True, known=BESIDE)
    tell_left_out(
        path for key, path in files.items() if not key.endswith(ending) and not path.name.endswith(BESIDE)
    )
    return {key.removesuffix(ending): path for key, path in files.items() if key.endswith(ending)}
