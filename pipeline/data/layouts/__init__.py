"""How sets of pictures lie on disks: a reader for each layout, in the module of its name.

Importing this package imports no reader, so that `dtem shards make --help` answers at once.
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.data.layouts.images_with_captions import Captioned
    from pipeline.data.layouts.images_with_masks import Layout

MASKS = {
    "ade20k": "ADE20K: SRC/{images,annotations}/{training,validation}; objectInfo150.txt in SRC names "
    "the 150 classes",
    "cityscapes": "Cityscapes: SRC/leftImg8bit and SRC/gtFine (*_labelIds.png); its 19 evaluated classes",
    "pascal": "PASCAL VOC 2012's layout: SRC/{JPEGImages,SegmentationClass,ImageSets/Segmentation}; "
    "VOC's classes or SRC/classes.json",
    "camvid": "CamVid in SegNet's layout: SRC/{train,trainannot,val,valannot,test,testannot}; 11 classes",
}
"""Maps a layout with masks to what it looks like."""
CAPTIONS = {
    "coco_captions": "COCO with Karpathy's splits: SRC/dataset_coco.json and SRC/{train2014,val2014}",
    "captions": "SRC: a .csv with the columns image and caption, or a .jsonl, of images below its "
    "folder; a column split is optional",
}
"""Maps a layout with captions to what it looks like."""

OTHER_TREES = {
    "coco_captions": ("train2014", "val2014"),
    "ade20k": ("images", "annotations"),
    "cityscapes": ("leftImg8bit", "gtFine"),
    "pascal": ("JPEGImages", "SegmentationClass"),
    "camvid": ("train", "trainannot"),
}
"""Maps a layout to folders of its tree, which are no classes."""
IMAGE_FOLDER, HF_DATASETS, LABELS = "imagefolder", "hf_datasets", "labels"
VIDEO_FOLDERS = "video_folders"
VIDEOS = {
    VIDEO_FOLDERS: "videos in class folders (Kinetics): SRC/{train,val,test}/CLASS/*.mp4, or SRC/CLASS/*.mp4"
}
"""Maps a layout of videos to what it looks like."""
TABLES = {
    LABELS: "a table of images and classes: SRC is a .csv or .jsonl, or the folder of labels.csv or "
    "labels.jsonl; columns image, and label (one class) or labels (any number), and split",
    HF_DATASETS: "Hugging Face's datasets: SRC as save_to_disk wrote it, or with .parquet files; columns "
    "image and label or caption",
}
"""Maps a layout in tables to what it looks like."""
LAYOUTS = (IMAGE_FOLDER, *VIDEOS, *MASKS, *CAPTIONS, *TABLES)
SHARD_SIZES = {IMAGE_FOLDER: 1000, HF_DATASETS: 1000, LABELS: 1000, VIDEO_FOLDERS: 200}
SHARD_SIZES |= dict.fromkeys((*MASKS, *CAPTIONS), 500)
"""Maps a layout to the number of samples of a shard."""


def read_masks(kind: str, source: Path) -> "Layout":
    """The images and masks of one of MASKS. Raises ConfigError where the tree is not there, SampleError for
    files that do not pair."""
    return import_module(f"{__name__}.{kind}").read(source)


def read_captions(kind: str, source: Path) -> "dict[str, Sequence[Captioned]]":
    """Maps a split to the images of one of CAPTIONS. Raises ConfigError where there is nothing to read,
    SampleError for what cannot be used."""
    return import_module(f"{__name__}.{kind}").read(source)
