"""Weights & Biases. What it would look up by itself (the command line, the console, the git remote) is not
sent: secrets may stand there."""

from collections.abc import Mapping
from uuid import uuid4

from pipeline.extras import extra, require
from pipeline.files import folder_within
from pipeline.train.trackers.tracker import Picture, TrackedRun, known_as

STARTS_WITHIN = 60.0
"""Seconds for the server to answer at the start."""


class Wandb:
    def __init__(
        self,
        run: TrackedRun,
        *,
        mode: str | None = None,
        entity: str | None = None,
        group: str | None = None,
    ):
        """mode: `online`, `offline` (files in RUN/wandb, for `wandb sync`) or None, which follows
        WANDB_MODE."""
        with extra("trackers"):
            import wandb
        self._image = wandb.Image
        settings = wandb.Settings(
            console="off",
            disable_git=True,
            save_code=False,
            silent=True,
            init_timeout=STARTS_WITHIN,
            x_disable_meta=True,
            x_save_requirements=False,
        )
        self._run = wandb.init(
            project=run.project,
            name=run.name,
            tags=list(run.tags),
            notes=run.notes,
            config=dict(run.config),
            dir=str(folder_within(run.folder, "wandb").parent),
            id=known_as(run, "wandb", lambda: uuid4().hex[:12]),
            resume="allow",
            mode=mode,  # pyright: ignore[reportArgumentType]
            entity=entity,
            group=group,
            settings=settings,
        )
        # a step of its own: a run that goes back repeats steps, which wandb's own step may not
        self._run.define_metric("*", step_metric="step")

    @staticmethod
    def check() -> None:
        require("trackers", "wandb", "leave wandb out of log.trackers")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "step": step})

    def show(self, step: int, pictures: Mapping[str, Picture]) -> None:
        shown = {
            f"pictures/{name}": self._image(str(own.path), caption=own.caption)
            for name, own in pictures.items()
        }
        self._run.log({**shown, "step": step})

    def close(self) -> None:
        self._run.finish()
