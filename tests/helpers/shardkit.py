"""Makes small tars, good and bad, without the writer that is under test; runs `dtem shards` and reads what it
wrote."""

import argparse
import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from launch.commands import shards
from pipeline.config.schema import AugmentConfig, DataConfig

Members = Iterable[tuple[str, bytes]]


def image(seed: int = 0, size: tuple[int, int] = (12, 12), form: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form)
    return out.getvalue()


def encoded(picture: Image.Image, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()


def samples(prefix: str, count: int, num_classes: int = 3) -> list[tuple[str, bytes]]:
    """(member name, bytes): a png and a cls for each key."""
    members = []
    for number in range(count):
        key = f"{prefix}_{number:03d}"
        members += [
            (f"{key}.png", image(sum(key.encode()) + number)),
            (f"{key}.cls", str(number % num_classes).encode()),
        ]
    return members


def write_tar(path: Path, members: Members) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def config(folder: Path | str | list[str], **options: Any) -> DataConfig:
    """Everything random is on; one set is both splits."""
    augment = AugmentConfig(
        crop_scale=(0.3, 1.0), rand_augment="rand-m9-mstd0.5-inc1", color_jitter=0.2, random_erasing=0.5
    )
    source = str(folder) if isinstance(folder, Path) else folder
    fields = {
        "schema": "classification",
        "train": source,
        "val": source,
        "img_size": 8,
        "batch_size": 3,
        "workers": 0,
        "shuffle_shards": 2,
    }
    fields |= {"allow_overlap": True}
    return DataConfig(**({"augment": augment} | fields | options))


def dtem(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    shards.add_parser(parser.add_subparsers())
    return shards.run(parser.parse_args(["shards", *map(str, arguments)]))


def read(folder: Path) -> dict[str, dict[str, bytes]]:
    """key -> members of all shards."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                stem, _, suffix = member.name.rpartition("/")[2].partition(".")
                found.setdefault(f"{path.name.split('-')[0]}:{stem}", {})[suffix] = tar.extractfile(
                    member
                ).read()  # pyright: ignore
    return found
