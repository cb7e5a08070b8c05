"""What a run needs, beside what this machine has: packages, data, tools, disk and memory."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from launch.checks.finding import Finding
from launch.checks.machine import GIB, found_tool, memory_here
from launch.checks.packages import needed_packages
from launch.configs.memory import checkpoint_bytes, estimate
from launch.configs.prepared import Prepared, prepare
from pipeline.config.schema import RunConfig
from pipeline.data.shards.locations import sets_of
from pipeline.errors import PipelineError, counted

OF_TASKS = {"segmentation": "segmentation", "captioning": "captioning"}
OF_TRACKERS = {"wandb": "trackers", "mlflow": "trackers"}
OF_PLACES = {"s3://": "s3", "gs://": "gs", "az://": "az", "hf_datasets:": "datasets"}
"""What a config gives -> the extra that it takes."""


def needs_of(config: RunConfig, world_size: int = 1) -> Iterator[Finding]:
    """Findings on what the run needs; `missing` is what it would end by."""
    for name, why in needed_extras(config).items():
        yield from needed_packages(name, why)
    if any(task.type == "captioning" for task in config.tasks.values()):
        yield found_tool("java", "captioning: METEOR, SPICE and PTB")
    try:
        prepared = prepare(config, world_size)
    except PipelineError as err:
        yield Finding("config", "missing", str(err))
        return
    yield from _data(prepared)
    yield from (Finding("config", "missing", trouble) for trouble in prepared.troubles)
    yield _disk(prepared)
    yield _memory(prepared)


def needed_extras(config: RunConfig) -> dict[str, str]:
    """Extra -> the setting that takes it."""
    found = {"deepspeed": "engine.type"} if config.engine.type == "deepspeed" else {}
    if config.log.pictures:
        found["plots"] = "log.pictures"
    for tracker in config.log.trackers:
        if tracker in OF_TRACKERS:
            found.setdefault(OF_TRACKERS[tracker], f"log.trackers, {tracker}")
    for name, task in config.tasks.items():
        if task.type in OF_TASKS:
            found.setdefault(OF_TASKS[task.type], f"tasks.{name}.type")
        for split in ("train", "val", "test"):
            for place in sets_of(getattr(task.data, split) or ()):
                for begin, extra in OF_PLACES.items():
                    if place.startswith(begin):
                        found.setdefault(extra, f"tasks.{name}.data.{split}")
    return found


def _data(prepared: Prepared) -> Iterator[Finding]:
    for held in prepared.data:
        name = f"tasks.{held.task}.data.{held.split}"
        if held.trouble:
            yield Finding("data", "missing", f"{name}: {held.trouble.removeprefix(f'{name}: ')}")
        else:
            said = f"{name}: {held.num_samples} samples in {counted(held.num_shards, 'shard')}"
            yield Finding("data", "ok", said)


def _disk(prepared: Prepared) -> Finding:
    """Room for the checkpoints that a run keeps, the best one, and the one that is being written."""
    one = checkpoint_bytes(prepared)
    wanted = one * (prepared.config.train.keep_checkpoints + 2)
    place = next(path for path in _upwards(Path(prepared.config.output)) if path.is_dir())
    free = shutil.disk_usage(place).free
    detail = f"{_size(free)} free at {place}; checkpoints take {_size(one)} each, {_size(wanted)} in all"
    way_out = "give another output, or lower train.keep_checkpoints"
    return Finding("disk", "ok", detail) if free > wanted else Finding("disk", "missing", detail, way_out)


def _upwards(folder: Path) -> Iterator[Path]:
    yield from (folder.absolute(), *folder.absolute().parents)


def _memory(prepared: Prepared) -> Finding:
    """The estimate for one rank, against what one rank has here."""
    wanted = estimate(prepared).total
    there, what = memory_here()
    detail = f"a rank takes about {_size(wanted)} or more; {what} has {_size(there)}"
    way_out = "lower data.batch_size and raise engine.accumulation, or give backbone.grad_checkpointing=True"
    return Finding("memory", "ok", detail) if wanted < there else Finding("memory", "warn", detail, way_out)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB / 10 else f"{num_bytes / (1 << 20):.0f} MiB"
