"""The shards of a split of a task. None that are evaluated on may be trained on."""

import logging
import os
from collections.abc import Iterator
from functools import lru_cache

from pipeline.config.schema import DataConfig
from pipeline.data.shards.find import load_manifest, split_named
from pipeline.data.shards.locations import is_remote
from pipeline.data.shards.manifest import Manifest, Shard
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


def find_split(task_name: str, config: DataConfig, split: str) -> tuple[str, Manifest]:
    """The setting that names the shards of a split, and the shards. A split without a setting of its own is
    looked for in `data.val`, else in `data.train`.

    Raises ConfigError where no setting is given, SampleError for shards that are not there or do not fit.
    """
    setting, source = setting_of(config, split)
    if source is None:
        raise ConfigError(f"task '{task_name}' has no data.{setting}: name its shards, or leave the task out")
    where = f"tasks.{task_name}.data.{setting}"
    try:
        return where, load_manifest(source, split) if setting == split else split_named(source, split)
    except SampleError as err:
        raise SampleError(f"{where}: {err}") from err


def training_shards(config: DataConfig, where: str) -> Manifest | None:
    """The shards of `data.train`. None, with a warning, where they cannot be read, as on a machine that only
    evaluates."""
    if config.train is None:
        return None
    try:
        return load_manifest(config.train, "train", checked=False)
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
    return own.url if _place(own) == _place(trained) else f"{own.url}, which has the bytes of {trained.url},"


def _twins(trained: Manifest, held_out: Manifest) -> Iterator[tuple[Shard, Shard]]:
    """Pairs of a held-out shard and the training shard that is the same."""
    places = {_place(shard): shard for shard in trained.shards}
    contents = {key: shard for shard in trained.shards for key in (shard.index_sha256, shard.sha256) if key}
    for shard in held_out.shards:
        found = places.get(_place(shard))
        alike = contents.get(shard.sha256) or contents.get(shard.index_sha256)
        if found is None and alike is not None and _bytes_of(alike) == _bytes_of(shard):
            found = alike
        if found is not None:
            yield shard, found


def _place(shard: Shard) -> str:
    return shard.url if is_remote(shard.url) else os.path.realpath(shard.url)


def _bytes_of(shard: Shard) -> tuple[int, str]:
    """Size and sha256 of a shard. A shard without a known hash, which is local, is read: two shards of other
    bytes can have one index."""
    return shard.num_bytes, shard.sha256 or ("" if is_remote(shard.url) else sha256_of(shard.url))
