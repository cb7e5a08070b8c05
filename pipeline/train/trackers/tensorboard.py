"""TensorBoard's event files, in RUN/tensorboard."""

from collections.abc import Mapping

import numpy as np
from PIL import Image

from pipeline.errors import ConfigError
from pipeline.extras import command, is_missing
from pipeline.files import folder_within
from pipeline.train.trackers.tracker import Picture, TrackedRun


class TensorBoard:
    def __init__(self, run: TrackedRun):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except Exception as err:  # whatever an installed package raises when it is imported
            trouble, way_out = (
                ("is not installed", f"to add it: {command('plots')}")
                if is_missing(err)
                else (f"cannot be imported ({type(err).__name__}: {err})", "mend or remove it")
            )
            raise ConfigError(
                f"tensorboard {trouble}, so the figures are in metrics.jsonl without it; {way_out}"
            ) from err
        # figures of later steps, which an interrupted run left behind, are dropped
        self._board = SummaryWriter(str(folder_within(run.folder, "tensorboard")), purge_step=run.step + 1)

    @staticmethod
    def check() -> None:
        """It is the default, so a run goes on without it."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def show(self, step: int, pictures: Mapping[str, Picture]) -> None:
        for name, picture in pictures.items():
            with Image.open(picture.path) as image:
                self._board.add_image(f"pictures/{name}", np.asarray(image), step, dataformats="HWC")
            self._board.add_text(f"pictures/{name}", picture.caption, step)

    def close(self) -> None:
        self._board.close()
