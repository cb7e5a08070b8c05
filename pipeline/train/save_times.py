"""When a run is saved between its first and its last step: after so many minutes, steps or epochs.

Steps are counted by all ranks alike. Minutes are those of rank 0, who tells the others where they meet before
each batch (`Meeting`): nobody waits for a device or for another clock.
"""

import math
import time
from collections.abc import Callable

from pipeline.config.schema import TrainConfig

FEWEST = 100
"""Steps between two saves at ends of epochs: shorter epochs are saved several at a time."""


class SaveTimes:
    """The saves that a run's settings ask for."""

    def __init__(self, config: TrainConfig, epoch_steps: float, clock: Callable[[], float] = time.monotonic):
        """epoch_steps: optimizer steps of an epoch, not rounded. clock: seconds."""
        self._clock, self._last = clock, clock()
        self._seconds = None if config.save_minutes is None else 60 * config.save_minutes
        self._period = config.save_every or epoch_steps * math.ceil(FEWEST / epoch_steps)

    def waited(self) -> bool:
        """Whether the last save was begun so long ago, by this rank's clock, that one is due."""
        return self._seconds is not None and self._clock() - self._last >= self._seconds

    def due(self, step: int) -> bool:
        """Whether a save is due after so many steps, by their number alone."""
        return int(step / self._period) > int((step - 1) / self._period)

    def begun(self) -> None:
        """A save begins now."""
        self._last = self._clock()
