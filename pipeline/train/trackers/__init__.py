"""Who is told of a run beside metrics.jsonl. A tracker is one file, and a line here."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.config.load import to_saved
from pipeline.config.schema import RunConfig
from pipeline.redact import without_secrets
from pipeline.registry import Registry
from pipeline.train.trackers.background import Background
from pipeline.train.trackers.csv_file import CsvFile
from pipeline.train.trackers.mlflow import MlFlow
from pipeline.train.trackers.tensorboard import TensorBoard
from pipeline.train.trackers.tracker import Picture, TrackedRun, Tracker
from pipeline.train.trackers.trackio import Trackio
from pipeline.train.trackers.wandb import Wandb

TRACKERS: Registry[Tracker] = Registry("tracker")
TRACKERS.register("tensorboard")(TensorBoard)
TRACKERS.register("csv")(CsvFile)
TRACKERS.register("wandb")(Wandb)
TRACKERS.register("mlflow")(MlFlow)
TRACKERS.register("trackio")(Trackio)


def check_trackers(config: RunConfig) -> None:
    """Raises ConfigError for a tracker that is not known, lacks its package, or is given another option."""
    run = tracked(config, 0)
    for name in config.log.trackers:
        TRACKERS.check(name, run, **config.log.options.get(name, {}))
        if check := getattr(TRACKERS.get(name), "check", None):
            check()


def tracked(config: RunConfig, step: int) -> TrackedRun:
    """The run as trackers see it, without secrets."""
    log, folder = config.log, Path(config.output)
    return TrackedRun(
        folder=folder,
        project=log.project,
        name=without_secrets(log.name or folder.resolve().name),
        tags=tuple(map(without_secrets, log.tags)),
        notes=without_secrets(log.notes),
        config=_clean(to_saved(config)),
        step=step,
    )


def _clean(value: Any) -> Any:
    """Plain data with all texts `without_secrets`."""
    if isinstance(value, Mapping):
        return {key: _clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean(item) for item in value]
    return without_secrets(value) if isinstance(value, str) else value


class Trackers:
    """All trackers of a run, on rank 0. One that cannot be made, or fails later, is left out with a word."""

    def __init__(
        self, run: TrackedRun, names: Sequence[str], options: Mapping[str, Mapping[str, Any]] | None = None
    ):
        """options: of trackers, by name."""
        given = options or {}
        self._all = [
            Background(name, partial(TRACKERS.build, name, run, **given.get(name, {}))) for name in names
        ]

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for each in self._all:
            each.tell(lambda tracker: tracker.write(step, values))

    def show(self, step: int, pictures: Mapping[str, Picture]) -> None:
        for each in self._all:
            each.tell(lambda tracker: tracker.show(step, pictures))

    def close(self) -> None:
        for each in self._all:
            each.close()
