"""COCO's captions in the splits of Karpathy and Li (2015): 113,287 images to train on, 5,000 to validate and
5,000 to test."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.data.layouts.images_with_captions import Captioned, Row, collected
from pipeline.data.layouts.picture_files import pictures_of, tell_left_out
from pipeline.errors import ConfigError, SampleError

NAME = "dataset_coco.json"
TREE = f"SRC/{NAME}, SRC/train2014/*.jpg and SRC/val2014/*.jpg"
REST = "restval"
"""The images of COCO's val2014 that are neither in val nor in test: they are trained on."""


def read(source: Path) -> dict[str, Sequence[Captioned]]:
    path = source / NAME
    if not path.is_file():
        raise ConfigError(f"{source} does not hold {NAME}; give SRC with {TREE}")
    try:
        rows = list(_rows(path))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
        raise SampleError(
            f"{path} is not in the form of Karpathy's splits: {type(err).__name__} {err}; fetch it anew"
        ) from err
    splits = collected(source, rows)
    named = {image.image for images in splits.values() for image in images}
    found = pictures_of(*sorted({path.parent for path in named}), nested=True)
    tell_left_out(path for path in found.values() if path not in named)
    return splits


def _rows(path: Path) -> Iterator[Row]:
    for entry in json.loads(path.read_bytes())["images"]:
        image = f"{entry['filepath']}/{entry['filename']}"
        split = "train" if entry["split"] == REST else entry["split"]
        yield Row(str(path), image, [sentence["raw"].strip() for sentence in entry["sentences"]], split)
