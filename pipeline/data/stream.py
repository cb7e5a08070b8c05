"""Streams of batches for training, without an end, and what builds them and the loaders for evaluation."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch

import pipeline.data.samples  # noqa: F401 - fills the registry
from pipeline.config.schema import DataConfig
from pipeline.data.batches import BatchReader
from pipeline.data.eval_loader import EvalLoader
from pipeline.data.lanes import Share
from pipeline.data.loading import loaded_by_workers
from pipeline.data.quarantine import Loaded, Quarantine
from pipeline.data.samples.class_names import Labels, agreed, tell_renumbered
from pipeline.data.samples.protocol import DATASETS
from pipeline.data.shards.held_out import find_split, refuse_training_shards, training_shards
from pipeline.data.shards.manifest import Manifest
from pipeline.data.stalls import WorkerNotes, never
from pipeline.errors import CheckpointError, ConfigError, SampleError, counted
from pipeline.interfaces import Batch

log = logging.getLogger(__name__)
FEW = 10
"""Number of bad samples that even the smallest set may have."""


class TrainStream:
    """An endless stream of this rank's micro-batches of one task.

    Micro-batch k of all ranks together holds positions [k * G, ... + G) of an endless sample order, in which
    each epoch is a permutation that is a pure function of (seed, epoch, manifest, lanes,
    data.shuffle_shards), of copies where sets have weights (copies.py); b is the micro-batch size in samples
    and G = b * world_size. Rank `rank` has b of them, by lane (lanes.py). Each sample is there as `views`
    images. num_samples: of one epoch.

    device: that decodes, with data.decode `cuda`; None: `Batch.to` does, where a bad body is an error.
    stopping: asked while a batch is waited for; once it says so, the wait ends with StopAsked.
    bad_samples, bad_shards: number of samples that this process could not use, in all and per shard.
    shortened_samples: number of samples that lost a part to fit, for instance the end of a caption.
    """

    def __init__(
        self,
        reader: BatchReader,
        config: DataConfig,
        manifest: Manifest,
        rank: int,
        world_size: int,
        batch_size: int,
    ):
        self.num_samples, self.num_shards = reader.order.num_samples, len(manifest.shards)
        self.stopping: Callable[[], bool] = never
        self.device: torch.device | None = None
        self._decodes_here: BatchReader | None = None
        self.classes, self.gives = reader.classes, reader.gives
        self.reader, self.config = reader, config
        self._quarantine = Quarantine(config.max_bad_samples)
        self._part = range(rank * batch_size, (rank + 1) * batch_size)
        self._batch, self._global = batch_size, batch_size * world_size
        self._samples = self._first = 0
        self.fingerprint = manifest.fingerprint

    @property
    def bad_samples(self) -> int:
        return self._quarantine.count

    @property
    def bad_shards(self) -> Counter[str]:
        return self._quarantine.shards

    @property
    def seen(self) -> int:
        """Number of samples over all ranks since the last `load_state_dict`."""
        return self._samples - self._first

    @property
    def bad_allowed(self) -> float:
        """Most bad samples among those seen, over all ranks, by data.max_bad_share: at least an epoch's
        share, as it may come at the beginning."""
        return max(FEW, self.config.max_bad_share * max(self.num_samples, self.seen))

    @property
    def shortened_samples(self) -> int:
        return self._quarantine.shortened.total()

    def __iter__(self) -> Iterator[Batch]:
        task = self.reader.task
        order = ((task, share) for share in self.shares())
        made = loaded_by_workers({task: self.reader}, order, self.config, self.stopping)
        yield from self.checked(loaded for _, loaded in made)

    def checked(self, made: Iterable[Loaded]) -> Iterator[Batch]:
        """The batches of `shares`, as workers made them, once their bad samples are counted."""
        images = self._batch * self.config.views
        for loaded in made:
            batch = self._quarantine.checked_batch(self._decoded(loaded))
            assert batch is not None and batch.num_images == images, (
                "losses over ranks need batches of one size"
            )
            # counted before the yield, so that a state saved while the batch is used includes it
            self._samples += self._global
            yield batch

    def _decoded(self, loaded: Loaded) -> Loaded:
        """What a worker loaded, with its coded images decoded. Where one of these does not decode, the batch
        is made anew by this process, so that a bad sample is replaced and counted as any other is."""
        if loaded.batch is None or self.device is None:
            return loaded
        try:
            return replace(loaded, batch=loaded.batch.decoded(self.device))
        except SampleError as err:
            log.warning("task '%s': %s; this batch is decoded by the CPU", loaded.batch.task, err)
        if self._decodes_here is None:
            self._decodes_here = self.reader.decoding_here()
            self._decodes_here.notes = WorkerNotes(1)  # those of the reader are of its workers
        return self._decodes_here[Share(self._samples, self._global, self._part)]

    def keys(self) -> list[str]:
        """The keys of all samples of the set. Raises StorageError."""
        return self.reader.keys()

    def disturb(self, disturbance: Callable[[int, dict[str, bytes]], dict[str, bytes]]) -> None:
        """Puts a fault into the reading of shards, see SampleReader.disturbances. Before `iter`."""
        self.reader.disturb(disturbance)

    def state_dict(self) -> dict[str, int]:
        """`samples`: position in the global order after the last batch. To resume there needs no replay."""
        return {
            "samples": self._samples,
            "manifest": self.fingerprint,
            "lanes": self.reader.order.lanes.num,
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Sets the position for the next `iter`. Raises CheckpointError for a position in other shards, or in
        other lanes."""
        if state.get("manifest", self.fingerprint) != self.fingerprint:
            raise CheckpointError(
                "the data position belongs to other shards; resume with those that the run was started "
                "on, or start anew"
            )
        # before there were lanes, an epoch was one
        if (saved := state.get("lanes", 1)) != (lanes := self.reader.order.lanes.num):
            raise CheckpointError(
                f"the data position belongs to an order of {counted(saved, 'lane')} and this run has "
                f"{lanes}; give data.lanes={saved}"
            )
        self._samples = self._first = state["samples"]

    def begin_epoch_after(self, samples: int) -> None:
        """Sets the position for the next `iter` to the first epoch of this order that begins at or behind
        `samples`: one in shards or lanes of another order cannot be found in this one."""
        self._samples = self._first = math.ceil(samples / self.num_samples) * self.num_samples

    def shares(self) -> Iterator[Share]:
        """What the batches from here on are made of."""
        share = Share(self._samples, self._global, self._part)
        while True:
            yield share
            share = share.later(1)


def build_stream(
    task_name: str,
    config: DataConfig,
    *,
    seed: int,
    rank: int,
    world_size: int,
    batch_size: int | None = None,
    accumulation: int = 1,
) -> TrainStream:
    """This rank's endless training stream; batch_size None takes config.batch_size. accumulation:
    micro-batches of a step of the optimizer. Raises ConfigError and SampleError."""
    size = batch_size or config.batch_size
    step = size * world_size * accumulation
    reader, manifest = _reader(task_name, config, "train", seed, world_size, step=step, checked=rank == 0)
    return TrainStream(reader, config, manifest, rank, world_size, size)


def build_eval_loader(
    task_name: str,
    config: DataConfig,
    *,
    rank: int,
    world_size: int,
    split: str = "val",
    classes: Sequence[str] = (),
) -> EvalLoader:
    """This rank's share of a split's samples, preprocessed for evaluation. Raises ConfigError and
    SampleError.

    split: `val`, `train`, or another one that the config or the shards name. classes: class names in the
    order of the model's labels; () takes those of the training shards, where these can be read.
    """
    reader, manifest = _reader(task_name, config, split, None, world_size, classes, checked=rank == 0)
    return EvalLoader(reader, config, manifest, rank, world_size)


def evaluated_split(config: DataConfig) -> str:
    """The split on which a run is evaluated: that of the samples it trains on, where it is to fit these."""
    return "train" if config.overfit else "val"


def _reader(
    task_name: str,
    config: DataConfig,
    split: str,
    seed: int | None,
    world_size: int,
    classes: Sequence[str] = (),
    *,
    checked: bool,
    step: int = 1,
) -> tuple[BatchReader, Manifest]:
    """Reader and manifest of a split. seed None: for evaluation. classes: see build_eval_loader. checked: see
    load_manifest. step: see BatchReader."""
    if seed is None:
        config = replace(config, decode="worker")
    where, manifest = find_split(task_name, config, split, checked=checked)
    schema = DATASETS.build(config.schema, config, manifest)
    if lacks := schema.missing(manifest.schema):
        held = ", ".join(manifest.schema)
        raise SampleError(
            f"{where}: its samples have the members {held}; schema '{config.schema}' needs {lacks}"
        )
    if seed is not None and (config.lanes or 1) > (most := len(manifest.shards)):
        raise ConfigError(f"data.lanes is {config.lanes} and {where} has {most} shards; give at most {most}")
    if split != "train" and (trained := training_shards(config, where)) is not None:
        if not config.allow_overlap:
            refuse_training_shards(trained, manifest, where)
        classes = classes or DATASETS.build(config.schema, config, trained).classes
    labels = agreed(schema.classes, classes, where)
    renumbered = labels != Labels.as_stored(schema.classes)
    if renumbered:
        tell_renumbered(tuple(schema.classes), labels, where)
        schema = DATASETS.build(config.schema, config, manifest, labels=labels)
    limit = _limit(config, split, seed)
    if limit is not None and limit < manifest.num_samples and checked:
        does, seen = ("evaluates" if seed is None else "trains on"), f"the first {limit} of"
        log.warning("%s: %s %s %d samples, as the config says", where, does, seen, manifest.num_samples)
    how = (seed, world_size, step, limit, labels if renumbered else None)
    return BatchReader(task_name, config, manifest, schema, *how), manifest


def _limit(config: DataConfig, split: str, seed: int | None) -> int | None:
    """Most samples of a split that are used; None: all. seed None: for evaluation."""
    given = (config.overfit if split == "train" else None, config.limit_val if seed is None else None)
    return min((number for number in given if number is not None), default=None)
