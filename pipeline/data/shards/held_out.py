"""The shards of a split of a task. None that are evaluated on may be trained on."""

import logging
import os
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipeline.config.schema import DataConfig
from pipeline.data.shards.cache import ShardCache, cache_folder
from pipeline.data.shards.find import load_manifest, split_named
from pipeline.data.shards.locations import is_remote
from pipeline.data.shards.manifest import Manifest
from pipeline.data.shards.table import Shard, ShardTable
from pipeline.errors import ConfigError, PipelineError, SampleError, first_few
from pipeline.files import sha256_of

log = logging.getLogger(__name__)
SETTINGS = ("train", "val", "test")
"""Fields of DataConfig that name shards."""


def setting_of(config: DataConfig, split: str) -> tuple[str, str | list[str] | None]:
    """The field of DataConfig that names the shards of a split, and its value: the split's own field, else
    `val`, else `train`, whose sets may hold the split too."""
    fields = [split] if split == "train" else [split, "val", "train"]
    given = [field for field in fields if field in SETTINGS and getattr(config, field) is not None]
    field = given[0] if given else split
    return field, getattr(config, field) if given else None


def find_split(
    task_name: str, config: DataConfig, split: str, *, checked: bool = True
) -> tuple[str, Manifest]:
    """The setting that names the shards of a split, and the shards. A split without a setting of its own is
    looked for in `data.val`, else in `data.train`. checked: see load_manifest.

    Raises ConfigError where no setting is given, SampleError for shards that are not there or do not fit.
    """
    setting, source = setting_of(config, split)
    if source is None:
        raise ConfigError(f"task '{task_name}' has no data.{setting}: name its shards, or leave the task out")
    where = f"tasks.{task_name}.data.{setting}"
    cache = cache_of(config)
    try:
        if setting != split:
            return where, split_named(source, split, checked=checked, cache=cache)
        weights = config.train_weights if split == "train" else None
        return where, load_manifest(source, split, checked=checked, cache=cache, weights=weights)
    except SampleError as err:
        raise SampleError(f"{where}: {err}") from err


def training_shards(config: DataConfig, where: str) -> Manifest | None:
    """The shards of `data.train`. None, with a warning, where they cannot be read, as on a machine that only
    evaluates."""
    if config.train is None:
        return None
    try:
        return load_manifest(config.train, "train", checked=False, cache=cache_of(config))
    except (PipelineError, OSError) as err:
        _warn_once(where, str(err))
        return None


@lru_cache(maxsize=64)
def _warn_once(where: str, why: str) -> None:
    log.warning(
        "whether %s holds shards that were trained on is not known, because data.train cannot be read: %s",
        where,
        why,
    )


def refuse_training_shards(trained: Manifest, held_out: Manifest, where: str) -> None:
    """Raises ConfigError where a shard of `held_out` is one of `trained`: the same file, or one with the same
    bytes. where: the setting that names the held-out shards."""
    twins = [_described(*twin) for twin in _twins(trained, held_out)]
    if twins:
        raise ConfigError(
            f"{where} holds shards that are trained on: {first_few(twins, 1)}. Scores on them say nothing of "
            "new images: name other "
            "shards, by a pattern where a folder is used whole. To fit a few samples on purpose, give "
            "data.allow_overlap=True"
        )


def _described(own: Shard, trained: Shard) -> str:
    same = own.name == trained.name and _folder(own) == _folder(trained)
    return own.url if same else f"{own.url}, which has the bytes of {trained.url},"


def _folder(shard: Shard) -> str:
    return shard.url if is_remote(shard.url) else os.path.realpath(os.path.dirname(shard.url))


def _twins(trained: Manifest, held_out: Manifest) -> Iterator[tuple[Shard, Shard]]:
    """Pairs of a held-out shard and the training shard that is the same."""
    places = {place: number for number, place in enumerate(_places(trained.shards))}
    contents = _contents(trained.shards)
    own = zip(
        _places(held_out.shards),
        _known(held_out.shards.sha256),
        _known(held_out.shards.index_sha256),
        strict=True,
    )
    for number, (place, sha256, index_sha256) in enumerate(own):
        if (found := places.get(place)) is not None:
            yield held_out.shards[number], trained.shards[found]
        elif (alike := contents.get(sha256, contents.get(index_sha256))) is not None:
            pair = held_out.shards[number], trained.shards[alike]
            if _bytes_of(pair[0]) == _bytes_of(pair[1]):
                yield pair


def _places(shards: ShardTable) -> Iterator[tuple[str, bytes]]:
    """(folder, name) of each shard; a folder has one name, whatever links lead to it. A link to a single
    shard is found by its content."""
    folders = [
        place.root if is_remote(place.root) else os.path.realpath(place.root) for place in shards.places
    ]
    return zip((folders[number] for number in shards.place.tolist()), shards.names.tolist(), strict=True)


def _contents(shards: ShardTable) -> dict[bytes, int]:
    """Maps the known hashes of a shard, and of its index, to its number."""
    both = (*enumerate(_known(shards.index_sha256)), *enumerate(_known(shards.sha256)))
    return {key: number for number, key in both if key}


def _known(hashes: NDArray[np.uint8]) -> list[bytes]:
    """[N, 32] -> the hashes without zeros at their end, so that one that is not known is empty."""
    return hashes.view("S32")[:, 0].tolist()


def _bytes_of(shard: Shard) -> tuple[int, str]:
    """Size and sha256 of a shard. A shard without a known hash, which is local, is read: two shards of other
    bytes can have one index."""
    return shard.num_bytes, shard.sha256 or ("" if is_remote(shard.url) else sha256_of(shard.url))


def cache_of(config: DataConfig) -> ShardCache:
    """The cache that a task's data says."""
    return ShardCache(cache_folder(config.cache_dir), int(config.cache_gib * 2**30))
