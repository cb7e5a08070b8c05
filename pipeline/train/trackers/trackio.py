"""Trackio, which keeps its figures on the disk (TRACKIO_DIR) or in a Space of Hugging Face.

The package is in no extra: it holds pillow below 13, which the lock is beyond. So it is looked up by its
name, in an environment to which somebody has added it.
"""

import importlib
from collections.abc import Mapping
from importlib import util
from uuid import uuid4

from pipeline.errors import ConfigError
from pipeline.train.trackers.tracker import Picture, TrackedRun, known_as

PACKAGE = "trackio"


class Trackio:
    def __init__(self, run: TrackedRun, *, space_id: str | None = None):
        """space_id: the Space that shows the run; None: the disk, for `trackio show`."""
        self._trackio = importlib.import_module(PACKAGE)
        self._run = self._trackio.init(
            project=run.project,
            # runs are told apart by their names there
            name=known_as(run, PACKAGE, lambda: f"{run.name}-{uuid4().hex[:6]}"),
            config={**run.config, "tags": list(run.tags), "notes": run.notes},
            resume="allow",
            space_id=space_id,
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    @staticmethod
    def check() -> None:
        if util.find_spec(PACKAGE) is None:
            raise ConfigError(
                "log.trackers: trackio is not installed; run pip install trackio, or leave it out"
            )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def show(self, step: int, pictures: Mapping[str, Picture]) -> None:
        shown = {
            f"pictures/{name}": self._trackio.Image(str(own.path), caption=own.caption)
            for name, own in pictures.items()
        }
        self._run.log(shown, step=step)

    def close(self) -> None:
        self._run.finish()
