"""Masks, the trees of public sets in small, and shards of images with masks."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from shardkit import image, write_tar

from pipeline.config.schema import AugmentConfig, DataConfig
from pipeline.data.make.existing import index_shards


def mask_of(labels: list[int], size: tuple[int, int] = (12, 12), seed: int = 0) -> NDArray[np.uint8]:
    """Blocks of three pixels; all labels occur."""
    rng = np.random.default_rng(seed)
    cells = rng.permutation(np.resize(labels, (size[0] // 3) * (size[1] // 3))).reshape(
        size[0] // 3, size[1] // 3
    )
    return np.kron(cells, np.ones((3, 3))).astype(np.uint8)


def png(mask: NDArray, *, palette: bool = False, **options: int) -> bytes:
    picture = Image.fromarray(mask)
    if palette:
        picture = Image.fromarray(mask, mode="P")
        picture.putpalette(np.random.default_rng(1).integers(0, 256, 768).tolist())
    out = io.BytesIO()
    picture.save(out, "PNG", **options)
    return out.getvalue()


def masked_shards(folder: Path, bad: dict[str, dict[str, bytes]] | None = None, count: int = 9) -> Path:
    """Samples of 12x12 pixels and four mask classes, the bad ones among them, in two shards with a
    manifest."""
    masks = [png(mask_of([0, 1, 2, 3, 255], seed=n)) for n in range(count)]
    members = [
        (f"g{n}.{name}", data)
        for n, mask in enumerate(masks)
        for name, data in (("png", image(n)), ("seg.png", mask))
    ]
    wrong = [
        (f"{key}.{suffix}", data) for key, parts in (bad or {}).items() for suffix, data in parts.items()
    ]
    tars = [
        write_tar(folder / "part-0.tar", members[:8] + wrong),
        write_tar(folder / "part-1.tar", members[8:]),
    ]
    index_shards([str(tar) for tar in tars], folder, classes=["road", "sky", "car", "tree"])
    return folder


def dense(source: Path | str, *, augment: dict | None = None, **options) -> DataConfig:
    fields = {
        "schema": "segmentation",
        "train": str(source),
        "val": str(source),
        "img_size": (8, 10),
        "batch_size": 3,
        "workers": 0,
    }
    fields |= {"allow_overlap": True}
    return DataConfig(**(fields | options), augment=AugmentConfig(**{"photometric": True} | (augment or {})))


def _pair(folder: Path, picture: str, mask: str, labels: list[int], seed: int, **options) -> None:
    for path in (folder / picture, folder / mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    (folder / picture).write_bytes(image(seed, (24, 36), "PNG" if picture.endswith(".png") else "JPEG"))
    (folder / mask).write_bytes(png(mask_of(labels, (24, 36), seed), **options))


def ade20k(root: Path) -> Path:
    for split, count in (("training", 3), ("validation", 2)):
        for n in range(count):
            name = f"ADE_{split[:5]}_{n:08d}"
            _pair(root, f"images/{split}/{name}.jpg", f"annotations/{split}/{name}.png", [0, 1, 77, 150], n)
    rows = [f"{n}\t0.1\t9\t{n}\tthing {n}, sort of {n}" for n in range(1, 151)]
    (root / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows, ""]))
    return root


def cityscapes(root: Path) -> Path:
    for split, city in (("train", "aachen"), ("train", "bochum"), ("val", "lindau")):
        for n in range(2):
            name = f"{split}/{city}/{city}_{n:06d}_000019"
            _pair(
                root,
                f"leftImg8bit/{name}_leftImg8bit.png",
                f"gtFine/{name}_gtFine_labelIds.png",
                [0, 3, 7, 8, 33],
                n,
            )
            (root / f"gtFine/{name}_gtFine_color.png").write_bytes(image(n, (24, 36)))
    return root


def pascal(root: Path) -> Path:
    for n in range(5):
        _pair(
            root,
            f"JPEGImages/2007_00000{n}.jpg",
            f"SegmentationClass/2007_00000{n}.png",
            [0, 5, 20, 255],
            n,
            palette=True,
        )
    (root / "JPEGImages" / "2008_000000.jpg").write_bytes(image())
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_000000\n2007_000001 \n2007_000002\n")
    (lists / "val.txt").write_text("2007_000003\n2007_000004")
    return root


def camvid(root: Path) -> Path:
    for split, count in (("train", 3), ("val", 2), ("test", 2)):
        for n in range(count):
            _pair(
                root,
                f"{split}/{split}_{n}.png",
                f"{split}annot/{split}_{n}.png",
                [0, 5, 10] + [11] * (n > 0),
                n,
            )
    return root


TREES: dict[str, Callable[[Path], Path]] = {
    "ade20k": ade20k,
    "cityscapes": cityscapes,
    "pascal": pascal,
    "camvid": camvid,
}
"""Each makes its tree in a folder, with pictures of 24x36."""
