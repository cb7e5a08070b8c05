"""Pictures with captions as shards. A reader in layouts/ says where they lie; this file does the rest."""

import json
import logging
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pipeline.data.make.picture_files import SUFFIXES, plain_key, read_picture
from pipeline.data.make.write import ShardJob, cut
from pipeline.data.members.decode import decode_captions
from pipeline.errors import SampleError
from pipeline.rng import seed_of

log = logging.getLogger(__name__)
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Row:
    """Some captions of an image, which is named by its path below the set's root. where: of the row, for
    messages."""

    where: str
    image: str
    captions: Sequence[str]
    split: str = "train"


@dataclass(frozen=True)
class Captioned:
    key: str
    image: Path
    split: str
    captions: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Part:
    """One shard's images; size: pixels of the shorter side to which larger ones are resized, or None for the
    files as they are."""

    images: tuple[Captioned, ...]
    size: int | None


def collected(root: Path, rows: Iterable[Row]) -> dict[str, list[Captioned]]:
    """Split -> its images, each with the captions of all of its rows. SampleError names the rows and images
    that cannot be used."""
    found: dict[str, Captioned] = {}
    blank = 0
    for row in rows:
        image = _image(root, row)
        known = found.setdefault(image.key, image)
        if (known.image, known.split) != (image.image, image.split):
            raise SampleError(
                f"{row.where}: {image.image} ({image.split}) was {known.image} ({known.split}) in a row "
                "before; keep one of them"
            )
        texts = [text for text in (" ".join(caption.split()) for caption in row.captions) if text]
        known.captions.extend(texts)
        blank += len(row.captions) - len(texts)
    problems = [f"image {image.image} has no caption" for image in found.values() if not image.captions]
    problems += [f"image {image.image} is missing" for image in found.values() if not image.image.is_file()]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise SampleError(f"{'; '.join(problems[:5])}{more}; add what is missing, or leave the image out")
    if blank:
        log.warning("%d captions are blank, and left out", blank)
    if counts := Counter(len(image.captions) for image in found.values()):
        said = ", ".join(f"{images} images have {number}" for number, images in sorted(counts.items()))
        log.info("captions, all of which are kept: %s", said)
    return {
        split: images
        for split in SPLITS
        if (images := [image for image in found.values() if image.split == split])
    }


def _image(root: Path, row: Row) -> Captioned:
    """Without captions as yet. The key is the path without its suffix."""
    path = PurePosixPath(row.image)
    if (
        path.is_absolute()
        or ".." in path.parts
        or not row.image.isprintable()
        or path.suffix.lower() not in SUFFIXES
    ):
        raise SampleError(
            f"{row.where}: image {row.image!r} is not the path of a picture ({', '.join(SUFFIXES)}) "
            f"below {root}"
        )
    if row.split not in SPLITS:
        raise SampleError(f"{row.where}: split {row.split!r} is none of {', '.join(SPLITS)}")
    return Captioned(plain_key(str(path.with_suffix(""))), root / path, row.split)


def caption_jobs(
    splits: Mapping[str, Sequence[Captioned]], *, shard_size: int, size: int | None, seed: int = 0
) -> list[ShardJob]:
    """The order within a split is a shuffle that depends on the keys and the seed only."""
    jobs = []
    for split, found in splits.items():
        images = sorted(found, key=lambda image: image.key)
        random.Random(seed_of(seed, "captions", split)).shuffle(images)
        parts = cut(images, shard_size)
        jobs += [
            ShardJob(f"{split}-{n:05d}.tar", read_part, _Part(tuple(part), size))
            for n, part in enumerate(parts)
        ]
    return jobs


def read_part(part: _Part) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, members) of each image; one that no reader would take raises SampleError with its path."""
    for image in part.images:
        suffix, data, _ = read_picture(image.image, part.size)
        captions = json.dumps({"captions": image.captions}).encode()
        try:
            decode_captions(captions)
        except SampleError as err:
            raise SampleError(f"{image.image}: {err}; replace or remove the file") from err
        yield image.key, {suffix: data, "json": captions}
