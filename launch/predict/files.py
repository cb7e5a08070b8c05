"""What `dtem predict` writes: predictions.jsonl, and pictures beside it. H x W pixels of an image."""

import io
import json
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from launch.predict.images import path_stem
from launch.predict.results import Caption, Classes, Groups, Mask, Prediction, SeveralClasses, Unread
from pipeline.drawing.groups import LEAST, owner_of_pixels, paint_groups
from pipeline.drawing.masks import paint_classes
from pipeline.drawing.palette import class_colours, ground_of
from pipeline.files import folder_within, write_bytes

PREDICTIONS = "predictions.jsonl"


class Writer:
    """Writes what is predicted of each image to a folder: a line to `lines`, which become predictions.jsonl,
    and pictures as they come.

    masks/: PNG, grey, the value of a pixel is the number of its class. overlays/: the classes as colours over
    the image that the model saw the most of. groups/: the patches that were merged, see `Groups`.
    """

    def __init__(self, root: Path, lines: IO[str]):
        self._root, self._lines = root, lines
        self._count = 0

    def add(self, found: Prediction | Unread, image: np.ndarray | None = None) -> None:
        """image: uint8 [H, W, 3], for overlays."""
        if isinstance(found, Unread):
            self._line({"image": found.image, "error": found.reason})
            return
        self._count += 1
        name = f"{self._count:06d}_{path_stem(found.image)}_{path_stem(found.task)}"
        facts: dict[str, Any] = {"image": found.image, "task": found.task, "size": list(found.size)}
        facts |= self._answer(found, name, image)
        if found.groups is not None:
            facts |= {
                "groups": self._picture("groups", name, draw_groups(found.groups)),
                "tokens": found.groups.num_tokens,
            }
        self._line(facts)

    def _answer(self, found: Prediction, name: str, image: np.ndarray | None) -> dict[str, Any]:
        if isinstance(found, Classes):
            return {"classes": classes_of(found)}
        if isinstance(found, Caption):
            return {"caption": found.text}
        assert isinstance(found, Mask)
        facts: dict[str, Any] = {
            "classes": [
                {"label": label, "name": found.name(label), "share": share}
                for label, share in found.shares.items()
            ],
            "mask": self._picture("masks", name, found.labels),
        }
        if image is not None:
            facts["overlay"] = self._picture("overlays", name, draw_mask(found, image))
        return facts

    def _picture(self, room: str, name: str, pixels: np.ndarray) -> str:
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG")
        write_bytes(folder_within(self._root, room) / f"{name}.png", out.getvalue())
        return f"{room}/{name}.png"

    def _line(self, facts: dict[str, Any]) -> None:
        self._lines.write(json.dumps(facts) + "\n")


def classes_of(found: Classes) -> list[dict[str, Any]]:
    """Plain data of the classes, the most likely one first."""
    several = found.threshold if isinstance(found, SeveralClasses) else None
    return [
        {"label": label, "name": name, "probability": share}
        | ({} if several is None else {"predicted": share >= several})
        for label, name, share in zip(found.labels, found.names, found.probabilities, strict=True)
    ]


def draw_groups(groups: Groups) -> np.ndarray:
    """uint8 [height, width, 3]: each group in its mean colour with a border, of the image as the model saw
    it, enlarged by a whole factor if it is small."""
    height, width = groups.seen.shape[:2]
    factor = max(1, -(-LEAST // max(height, width)))
    picture = groups.seen.repeat(factor, axis=0).repeat(factor, axis=1)
    return paint_groups(
        picture, owner_of_pixels(groups.slots, (height, width), groups.patch, picture.shape[:2])
    )


def draw_mask(mask: Mask, image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3]: the classes as colours over the image in grey. The background stays clear."""
    ground = ground_of(mask.classes)
    colours = class_colours(max(len(mask.classes), int(mask.labels.max()) + 1), ground)
    return paint_classes(image, mask.labels, colours, ground)
