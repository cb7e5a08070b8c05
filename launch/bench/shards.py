"""`dtem shards bench`: how fast a set is read, decoded and augmented in one process, how fast a loader's
workers give batches of it, and how many cores a GPU of some rate takes."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice, pairwise
from typing import Any

import torch
from torch.utils.data import default_collate
from tqdm import tqdm

import pipeline.data.samples  # noqa: F401 - fills the registry
from pipeline.config.build import build_dataclass
from pipeline.config.overrides import override
from pipeline.config.schema import DataConfig
from pipeline.data.samples.protocol import DATASETS
from pipeline.data.shards.held_out import cache_of, find_split
from pipeline.data.shards.reader import SampleReader
from pipeline.data.stream import build_stream
from pipeline.errors import ConfigError, SampleError, counted
from pipeline.interfaces import Batch
from pipeline.rng import preserved_generators, seed_generators

STAGES = ("read", "decode", "augment", "collate")
"""What a worker does."""
NAMES = {"scaled": {"decode": "header", "augment": "decode, augment"}, "cuda": {"decode": "header"}}
"""data.decode -> what a stage is called whose work is another one there."""
DEVICE = "device"
"""What comes behind it: a batch is moved to the device, decoded there with `data.decode=cuda`, changed as
`data.augment.on_device` says, and normalised."""
ALL = "one core"
OPTIONS = {"train": "SET", "workers": "--workers"}
"""Settings that are arguments of their own."""
SEED = 0
REPEATS = 5
TRIES = 8
"""Batches among which one is looked for that is whole."""
PATIENCE = 60.0


@dataclass(frozen=True)
class Rate:
    """workers: 0 for this process alone. megabytes_per_s: of stored bytes, 10^6."""

    stage: str
    workers: int
    samples_per_s: float
    megabytes_per_s: float


def settings(data: Mapping[str, Any], overrides: Sequence[str]) -> DataConfig:
    """The settings of a task's `data`, from plain data and changes such as `augment.hflip=0`. Raises
    ConfigError."""
    for item in overrides:
        if (name := item.partition("=")[0].rstrip("+").strip()) in OPTIONS:
            raise ConfigError(f"--set {item}: give {OPTIONS[name]} in its place")
    given = override(
        {"tasks": {"bench": {"data": dict(data)}}}, [f"tasks.bench.data.{item}" for item in overrides]
    )
    return build_dataclass(DataConfig, given["tasks"]["bench"]["data"], "the settings of `dtem shards bench`")


def measure(config: DataConfig, workers: Sequence[int], samples: int) -> list[dict[str, Any]]:
    """Rates of each stage by itself, then of batches by each number of workers, as plain data. The first
    samples are read twice, so that what is measured is not the disk's first answer. Raises the errors of
    data."""
    found, per_sample = _stages(config, samples)
    for number in workers:
        found.append(_loader(replace(config, workers=number), samples, per_sample))
    return [asdict(rate) for rate in found]


def cores_for(rate: float, rates: Sequence[dict[str, Any]]) -> int:
    """How many cores make so many samples a second. rates: as `measure` gives them."""
    (one,) = (own["samples_per_s"] for own in rates if own["stage"] == ALL)
    return math.ceil(rate / one)


def device_here() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def words_on(config: DataConfig, rate: int, rates: Sequence[dict[str, Any]]) -> list[str]:
    """What the rates mean for a GPU that trains on `rate` samples a second."""
    cores = counted(cores_for(rate, rates), "core")
    lines = [f"a GPU that trains on {rate} samples/s takes {cores} like this one"]
    if config.decode != "cuda" and not config.augment.on_device:
        return lines
    if device_here() == "cpu":
        return [*lines, "there is no GPU here: what it has to do was measured on the CPU, as 'device'"]
    (device,) = (own["samples_per_s"] for own in rates if own["stage"] == DEVICE)
    share = f"{100 * rate / device:.0f} % of the GPU's time"
    return [*lines, f"decoding and changing as many images there takes {share}"]


def _stages(config: DataConfig, samples: int) -> tuple[list[Rate], float]:
    """The rates of what one process does, and the mean bytes of a sample."""
    _, manifest = find_split("bench", config, "train", checked=False)
    schema = DATASETS.build(config.schema, config, manifest)
    if lacks := schema.missing(manifest.schema):
        raise ConfigError(f"{config.train}: schema '{config.schema}' needs {lacks}; give --schema")
    reader = SampleReader(manifest, 2, cache_of(config), PATIENCE, schema.reads)
    seconds: dict[str, float] = dict.fromkeys(STAGES[:-1], 0.0)
    count = size = 0
    with preserved_generators():
        places = list(_places(manifest.shards, samples))
        for shard, number in tqdm(places, "stages", leave=False, disable=None):
            try:
                reader.read(shard, number)
                times = [time.perf_counter()]
                members = reader.read(shard, number)
                times.append(time.perf_counter())
                image, target = schema.decode(members)
                times.append(time.perf_counter())
                seed_generators(SEED, "bench", number)
                schema.train(image, target)
            except (SampleError, OSError):
                continue  # a stream replaces it
            times.append(time.perf_counter())
            for stage, (start, end) in zip(STAGES, pairwise(times), strict=False):
                seconds[stage] += end - start
            count, size = count + 1, size + sum(map(len, members.values()))
    if not count:
        raise SampleError(f"{config.train}: none of its first {samples} samples decodes")
    seconds["collate"], device = _collated(config, count)
    seconds |= {ALL: sum(seconds.values()), DEVICE: device}
    names = NAMES.get(config.decode, {})
    rates = [
        Rate(names.get(stage, stage), 0, count / spent, size / spent / 1e6)
        for stage, spent in seconds.items()
    ]
    return rates, size / count


def _collated(config: DataConfig, count: int) -> tuple[float, float]:
    """Seconds for `count` samples, in batches: to make a batch of what is augmented, and on the device. The
    first batch is made twice, so that nothing is measured that is done once."""
    device = torch.device(device_here())
    batch = _whole(config, device)
    size = batch.num_images / config.views

    def collate() -> object:
        files = [] if batch.coded is None else [batch.coded.data.clone()]
        return [default_collate(list(batch.images))] if len(batch.images) else files

    def on_device() -> object:
        moved = batch.to(device)
        return moved.images.sum().item()  # waits for the device

    return count / size * _seconds(collate), count / size * _seconds(on_device)


def _whole(config: DataConfig, device: torch.device) -> Batch:
    """One of the first batches whose files all decode on the device; where each of these has a file that does
    not, a smaller one. Raises SampleError."""
    size, plain, wrong = config.batch_size, replace(config, workers=0), ""
    while size > 0:
        stream = build_stream("bench", plain, seed=SEED, rank=0, world_size=1, batch_size=size)
        for batch in islice(stream, TRIES):
            try:
                batch.decoded(device)
                return batch
            except SampleError as err:
                wrong = str(err)
        size //= 2
    raise SampleError(f"{config.train}: {wrong}; none of the first {TRIES} samples decodes there")


def _seconds(step: Callable[[], object]) -> float:
    """The least of a few calls, behind one that warms up."""
    step()
    found = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        step()
        found.append(time.perf_counter() - start)
    return min(found)


def _places(shards: Any, samples: int) -> Iterator[tuple[int, int]]:
    every = ((at, number) for at, shard in enumerate(shards) for number in range(shard.num_samples))
    return islice(every, samples)


def _loader(config: DataConfig, samples: int, per_sample: float) -> Rate:
    """Batches behind the first ones, for which workers start."""
    stream = build_stream("bench", config, seed=SEED, rank=0, world_size=1)
    batches, wanted = iter(stream), max(2, -(-samples // config.batch_size))
    next(batches)
    start = time.perf_counter()
    for _ in tqdm(range(wanted), f"{config.workers} workers", leave=False, disable=None):
        next(batches)
    rate = wanted * config.batch_size / (time.perf_counter() - start)
    return Rate("batches", config.workers, rate, rate * per_sample / 1e6)
