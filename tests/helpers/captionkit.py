"""A small set of captioned images, as it lies on a disk and as lists of public sets name it."""

import json
from pathlib import Path

from shardkit import image

Entry = dict[str, object]
SET: dict[str, tuple[str, list[str]]] = {
    "train2014/COCO_train_1.jpg": ("train", ["A man.", "  Two\n men ", "a \u201cman\u201d"]),
    "train2014/COCO_train_2.jpg": ("train", ["a dog, running"]),
    "val2014/COCO_val_3.jpg": ("train", ["it's 3 o'clock"]),
    "val2014/COCO_val_4.jpg": ("val", ["a man", "a man"]),
    "val2014/COCO_val_5.jpg": ("test", ["a kitchen"]),
}
"""Image -> its split and captions. The third is one of Karpathy's `restval`."""


def pictures(root: Path) -> Path:
    for number, name in enumerate(SET):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(image(number, (30 + number, 40), "JPEG"))
    return root


def entries() -> list[Entry]:
    return [{"image": name, "split": split, "captions": captions} for name, (split, captions) in SET.items()]


def karpathy(root: Path, listed: list[Entry]) -> Path:
    images = []
    for number, entry in enumerate(listed):
        folder, _, name = str(entry["image"]).rpartition("/")
        split = "restval" if "val_3" in name else entry["split"]
        sentences = [{"raw": text, "tokens": [], "sentid": number} for text in entry["captions"]]  # pyright: ignore
        images.append(
            {"filepath": folder, "filename": name, "split": split, "cocoid": number, "sentences": sentences}
        )
    (root / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    return root
