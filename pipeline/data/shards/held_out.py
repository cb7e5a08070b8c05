"""Which shards a split of a task is, and that none to evaluate on is one to train on."""

import logging
import os
from collections.abc import Iterator
from functools import lru_cache

from pipeline.config.schema import DataConfig
from pipeline.data.shards.find import load_manifest, split_named
from pipeline.data.shards.locations import is_remote
from pipeline.data.shards.manifest import Manifest, Shard
from pipeline.data.shards.storage import sha256_of
from pipeline.errors import ConfigError, PipelineError, SampleError, first_few

log = logging.getLogger(__name__)
SETTINGS = ("train", "val", "test")
"""Fields of DataConfig that name shards."""


def setting_of(config: DataConfig, split: str) -> tuple[str, str | list[str] | None]:
    """(the field that says where a split's shards are, its value): its own, else `val`, else `train`, whose
    sets may name it too."""
    fields = [split] if split == "train" else [split, "val", "train"]
    given = [field for field in fields if field in SETTINGS and getattr(config, field) is not None]
    field = given[0] if given else split
    return field, getattr(config, field) if given else None


def find_split(task_name: str, config: DataConfig, split: str) -> tuple[str, Manifest]:
    """(the setting that names them, the shards). A split that no setting names is looked for in `data.val`,
    else in `data.train`.

    Raises ConfigError where nothing is given for it, SampleError for shards that are not there or do not fit.
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
    """Those of `data.train`; None, which is said, where they cannot be read, as on a machine that only
    evaluates."""
    if config.train is None:
        return None
    try:
        return load_manifest(config.train, "train", checked=False)
    except (PipelineError, OSError) as err:
        _say_once(where, str(err))
        return None


@lru_cache(maxsize=64)
def _say_once(where: str, why: str) -> None:
    log.warning(
        "whether %s holds shards that were trained on is not known, because data.train cannot be read: %s",
        where,
        why,
    )


def refuse_training_shards(trained: Manifest, held_out: Manifest, where: str) -> None:
    """ConfigError where a shard of `held_out` is one of `trained`: the same file, or one with the same bytes.
    where: the setting."""
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
    """Size and hash. One that was indexed on the fly, and so is local, is read: an index alone can be that of
    other bytes."""
    return shard.num_bytes, shard.sha256 or ("" if is_remote(shard.url) else sha256_of(shard.url))
