"""Looks into a set: one sample by its key, or how many samples each class has."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.data.members.clips import VIDEOS, kind_of
from pipeline.data.members.decode import check_header
from pipeline.data.members.video import Video
from pipeline.data.shards.cache import default_cache
from pipeline.data.shards.describe import class_in
from pipeline.data.shards.find import load_manifest
from pipeline.data.shards.label_noise import TRUE_CLASS
from pipeline.data.shards.manifest import Manifest
from pipeline.data.shards.reader import SampleReader
from pipeline.errors import ConfigError, SampleError

PATIENCE = 60.0
LONGEST = 400
"""Characters of a text that is shown."""


@dataclass(frozen=True)
class Found:
    """A sample, and its place."""

    shard: str
    split: str
    number: int
    members: Mapping[str, bytes]


def find_sample(source: str, key: str) -> Found | None:
    """The first sample of this key; None where there is none. Raises SampleError, StorageError."""
    manifest = load_manifest(source)
    reader = SampleReader(manifest, 1, default_cache(), PATIENCE)
    for at, shard in enumerate(manifest.shards):
        for number in range(shard.num_samples):
            if reader.key(at, number) == key:
                return Found(shard.name, shard.split, number, reader.read(at, number))
    return None


def told(suffix: str, data: bytes) -> str:
    """What a member is, in a line: the size of an image, the text of another one."""
    size = f"{len(data)} bytes"
    pictures = suffix == "seg.png" or kind_of(suffix) in ("image", "frame")
    if pictures or suffix in VIDEOS:
        try:
            return f"{size}, {_inside(data) if pictures else Video(data, suffix)}"
        except (SampleError, ConfigError) as err:
            return f"{size}, {err}"
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return size
    return f"{size}: {text[:LONGEST]}{'...' if len(text) > LONGEST else ''}"


def _inside(picture: bytes) -> str:
    height, width = check_header(picture)
    return f"{width}x{height} pixels"


def wrong_labels(manifest: Manifest) -> dict[str, int]:
    """Split -> number of samples whose label is not the true one, in a set that has both."""
    reader = SampleReader(manifest, 1, default_cache(), PATIENCE, ("cls", TRUE_CLASS))
    found: dict[str, int] = {}
    for at, shard in enumerate(manifest.shards):
        both = (reader.read(at, number) for number in range(shard.num_samples))
        wrong = sum(class_in(own.get("cls", b"")) != class_in(own.get(TRUE_CLASS, b"")) for own in both)
        found[shard.split] = found.get(shard.split, 0) + wrong
    return found


def class_counts(manifest: Manifest) -> dict[str, Counter[int]]:
    """Split -> number of samples of each label. A label that cannot be read counts as -1. Shards that are
    elsewhere are downloaded to the cache for it."""
    reader = SampleReader(manifest, 1, default_cache(), PATIENCE, ("cls",))
    found: dict[str, Counter[int]] = {}
    for at, shard in enumerate(manifest.shards):
        counts = found.setdefault(shard.split, Counter())
        for number in range(shard.num_samples):
            counts[class_in(reader.read(at, number).get("cls", b""))] += 1
    return found
