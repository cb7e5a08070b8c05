"""Faults of the disk of checkpoints."""

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.train import storage
from pipeline.train.faults.fault import FAULTS, Victim


@FAULTS.register("enospc")
class NoSpace:
    """The disk is full in the middle of a save: half of its first file is written."""

    step: int | None = None
    rank: int | None = 0
    """The rank that writes."""

    def __init__(self, *, save: int):
        self.save: int | None = save

    def prepare(self, run: Victim) -> None:
        """Nothing to prepare."""

    def strike(self, run: Victim) -> None:
        write = storage.write_tensors

        def fail(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
            storage.write_tensors = write
            write(path, tensors)
            os.truncate(path, path.stat().st_size // 2)
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} (injected)", str(path))

        storage.write_tensors = fail
