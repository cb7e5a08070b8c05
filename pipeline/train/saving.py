"""Saving of checkpoints while training goes on: rank 0 writes in a thread what was copied from the device."""

import json
import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from pipeline.engine.protocol import Engine
from pipeline.errors import CheckpointError, PipelineError
from pipeline.ranks import Ranks
from pipeline.run_folder import point
from pipeline.train import storage
from pipeline.train.collective import from_rank0
from pipeline.train.mirror import Mirror

log = logging.getLogger(__name__)

HEARTBEAT = 5.0
"""Seconds between two signs of life of a rank 0 that is still writing, while other ranks wait for it: a
collective that takes longer than its timeout would end them."""


class Saver:
    """Writes the checkpoints of a run, one at a time. All ranks have one, and call its methods together.

    `start` blocks for the copy from the device to the host, and until the checkpoint before is written. What
    goes wrong on rank 0 (a full disk, a weight that is not finite) is raised on all ranks by the next
    `settle`, or `start`; older checkpoints stay. As a context manager it waits for the last checkpoint,
    however the run ends.
    """

    def __init__(self, ranks: Ranks, root: Path, keep: int, mirror: Mirror | None = None):
        """root: folder of the checkpoints. keep: number of checkpoints that stay, beside the best. mirror:
        keeps copies; one that fails is said, and stops nothing."""
        self._ranks, self._root, self._keep, self._mirror = ranks, root, keep, mirror
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[Path] | None = None

    def start(
        self,
        engine: Engine,
        step: int,
        tensors: Mapping[str, Tensor],
        facts: Mapping[str, Any],
        *,
        since: int,
        best: bool = False,
    ) -> None:
        """Begins to save the engine's state with `tensors`, which are copies on the CPU of rank 0, and
        `facts`. A collective; `settle` is called before.

        since: the step that the run last saved, or continued from. Checkpoints of later steps are set aside,
        with a warning.
        """
        content = engine.state_tensors() | dict(tensors)
        if self._ranks.rank == 0:
            assert self._writing is None, "settle(wait=True) comes before"
            self._writing = self._thread.submit(self._write, step, content, facts, since, best)

    def settle(self, *, wait: bool) -> Path | None:
        """Folder of the checkpoint that was completed since the last call; None where there is none. wait:
        until it is complete. A collective. Raises CheckpointError on all ranks."""
        while True:
            told = json.loads(from_rank0(self._ranks, json.dumps(self._progress(HEARTBEAT if wait else 0))))
            if told.get("trouble"):
                raise CheckpointError(told["trouble"])
            if not (wait and told.get("busy")):
                return Path(told["folder"]) if told.get("folder") else None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()
        if self._writing is not None and (err := self._writing.exception()) is not None:
            log.error("%s", err)

    def _progress(self, seconds: float) -> dict[str, Any]:
        """What rank 0 tells, after at most so many seconds."""
        if self._writing is None:
            return {}
        if self._writing in wait([self._writing], seconds).not_done:
            return {"busy": True}
        done, self._writing = self._writing, None
        err = done.exception()
        return {"folder": str(done.result())} if err is None else {"trouble": str(err)}

    def _write(
        self, step: int, content: Mapping[str, Tensor], facts: Mapping[str, Any], since: int, best: bool
    ) -> Path:
        """In the thread. Raises CheckpointError for whatever goes wrong, as others wait to hear of it."""
        try:
            _refuse_nonfinite(content)
            folder = storage.write_checkpoint(self._root, step, content, facts, since=since)
            if best:
                point(self._root, "best", folder)
            storage.prune(self._root, self._keep, folder)
        except Exception as err:
            reason = str(err) if isinstance(err, OSError | SafetensorError | PipelineError) else repr(err)
            raise CheckpointError(
                f"checkpoint of step {step} was not saved in {self._root}: {reason}"
            ) from err
        self._copy(folder)
        return folder

    def _copy(self, folder: Path) -> None:
        if self._mirror is None:
            return
        try:
            self._mirror.put(folder, self._keep)
        except (OSError, PipelineError) as err:
            log.warning(
                "%s was not copied to %s (%s); it is on this disk alone, and the next one will be copied",
                *(folder, self._mirror.url, err),
            )


def _refuse_nonfinite(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise CheckpointError(f"{name} is not finite; the older checkpoints stay")
