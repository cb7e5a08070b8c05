"""MLflow, by its client: no global run, and no state of the thread."""

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pipeline.extras import extra, require
from pipeline.train.trackers.tracker import Picture, TrackedRun, known_as

AT_ONCE = 100
"""Most figures or settings in a request; the server's limit for settings."""
MOST_CHARACTERS = 500
"""Of the value of a setting."""


class MlFlow:
    def __init__(self, run: TrackedRun, *, tracking_uri: str | None = None):
        """tracking_uri: None follows MLFLOW_TRACKING_URI, as everywhere in MLflow."""
        with extra("trackers"):
            from mlflow import MlflowClient
            from mlflow.entities import Metric, Param
        self._metric, self._client = Metric, MlflowClient(tracking_uri=tracking_uri)
        self._id = known_as(run, "mlflow", lambda: self._new(run, Param))
        self._client.update_run(self._id, status="RUNNING")

    @staticmethod
    def check() -> None:
        require("trackers", "mlflow", "leave mlflow out of log.trackers")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        named = {_allowed(name, values): value for name, value in values.items()}
        figures = [self._metric(name, value, now, step) for name, value in named.items()]
        for first in range(0, len(figures), AT_ONCE):
            self._client.log_batch(self._id, metrics=figures[first : first + AT_ONCE])

    def show(self, step: int, pictures: Mapping[str, Picture]) -> None:
        for picture in pictures.values():
            self._client.log_artifact(self._id, str(picture.path), f"pictures/step_{step:08d}")

    def close(self) -> None:
        self._client.set_terminated(self._id)

    def _new(self, run: TrackedRun, param: Any) -> str:
        """Makes the run, with its settings, which are written once: MLflow lets nobody change them."""
        there = self._client.get_experiment_by_name(run.project)
        where = there.experiment_id if there else self._client.create_experiment(run.project)
        tags = {"tags": ", ".join(run.tags), "mlflow.note.content": run.notes}
        made = self._client.create_run(where, run_name=run.name, tags={k: v for k, v in tags.items() if v})
        settings = [param(_allowed(name), text[:MOST_CHARACTERS]) for name, text in _flat(run.config)]
        for first in range(0, len(settings), AT_ONCE):
            self._client.log_batch(made.info.run_id, params=settings[first : first + AT_ONCE])
        return made.info.run_id


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, str(value)


def _allowed(name: str, others: Iterable[str] = ()) -> str:
    """The name with `_` for characters that MLflow does not take; `lr` beside `lr/base` is `lr/all`, as a
    name is a file or a folder where files are its store."""
    is_folder = any(other.startswith(f"{name}/") for other in others)
    return re.sub(r"[^\w\-. /]", "_", f"{name}/all" if is_folder else name, flags=re.ASCII)
