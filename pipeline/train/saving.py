"""Saving of checkpoints while training goes on: rank 0 writes in a thread what was copied from the device."""

import json
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from copy import deepcopy
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.engine.protocol import Engine
from pipeline.errors import CheckpointError
from pipeline.interfaces import Progress
from pipeline.ranks import Ranks
from pipeline.run_folder import folder_name, point, pointed
from pipeline.train import storage
from pipeline.train.collective import from_rank0, said
from pipeline.train.copier import AT_THE_END, IN_A_HURRY, Copier
from pipeline.train.mirror import Mirror

log = logging.getLogger(__name__)

HEARTBEAT = 5.0
"""Seconds between two signs of life of a rank 0 that is still writing, while other ranks wait for it: a
collective that takes longer than its timeout would end them."""


class Saver:
    """Writes the checkpoints of a run, one at a time. All ranks have one, and call its methods together.

    `start` blocks for the copy from the device to the host. What goes wrong on rank 0 (a full disk, a weight
    that is not finite) is raised on all ranks by the next `settle`; older checkpoints stay. As a context
    manager it waits for the last checkpoint, however the run ends, and some seconds for its copy.
    """

    saved: Progress
    """Progress of the newest checkpoint that is complete: what was restored, or what `settle` has told."""
    hurried = False
    """Whether the run ends before its last step."""

    def __init__(self, ranks: Ranks, root: Path, keep: int, mirror: Mirror | None = None):
        """root: folder of the checkpoints. keep: number of checkpoints that stay, beside the best. mirror:
        keeps copies; one that fails is said, and stops nothing."""
        self.saved = Progress()
        self._ranks, self._root, self._keep = ranks, root, keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[Path | None] | None = None
        self._begun = self.saved
        self._copier = Copier(mirror, keep)

    def restored(self, progress: Progress, folder: Path) -> None:
        """The run goes on from the checkpoint in `folder`."""
        self.saved = deepcopy(progress)
        if self._ranks.rank == 0:
            self._copier.copy(folder)

    def start(
        self,
        engine: Engine,
        progress: Progress,
        tensors: Mapping[str, Tensor],
        facts: Mapping[str, Any],
        *,
        moments: bool = True,
    ) -> None:
        """Begins to save the engine's state with `tensors`, which are copies on the CPU of rank 0, with
        `progress` and with `facts`. moments: whether with those of the optimizer. A collective; `settle` is
        called before."""
        state = engine.copied_state()
        chosen = state if moments else lambda: _weights_of(state())
        self._begin(progress, partial(self._write, chosen, tensors, facts))

    def restate(self, progress: Progress, facts: Mapping[str, Any]) -> None:
        """Begins to write `progress` and `facts` of the newest checkpoint anew, whose step it is. A
        collective; `settle` is called before."""
        self._begin(progress, partial(self._write_facts, facts))

    def settle(self, *, wait: bool) -> Path | None:
        """Folder of the checkpoint that was completed since the last call; None where there is none. wait:
        until it is complete. A collective. Raises CheckpointError on all ranks."""
        while True:
            told = json.loads(from_rank0(self._ranks, json.dumps(self._told(HEARTBEAT if wait else 0))))
            if (trouble := told.get("trouble")) is not None:
                raise CheckpointError(self._not_saved(trouble))
            if told.get("done"):
                self.saved = self._begun
            if not (wait and told.get("busy")):
                return Path(told["folder"]) if told.get("folder") else None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        writing = self._writing
        if kind is not None and writing is not None and wait([writing], IN_A_HURRY).not_done:
            # its disk does not answer; what is there of the checkpoint is under another name
            log.error("%s", self._not_saved("the run has failed, and did not wait for it any longer"))
            self._thread.shutdown(wait=False)
            return
        self._thread.shutdown()
        if trouble := self._told(0).get("trouble"):
            log.error("%s", self._not_saved(trouble))
        self._copier.close(IN_A_HURRY if kind is not None or self.hurried else AT_THE_END)

    def _begin(self, progress: Progress, write: Callable[[Progress], Path | None]) -> None:
        self._begun = deepcopy(progress)
        if self._ranks.rank == 0:
            assert self._writing is None, "settle(wait=True) comes before"
            self._writing = self._thread.submit(write, self._begun)

    def _told(self, seconds: float) -> dict[str, Any]:
        """What rank 0 tells, after at most so many seconds."""
        if self._writing is None:
            return {}
        if self._writing in wait([self._writing], seconds).not_done:
            return {"busy": True}
        done, self._writing = self._writing, None
        if (err := done.exception()) is not None:
            return {"trouble": said(err)}
        return {"done": True, "folder": str(done.result() or "")}

    def _not_saved(self, trouble: str) -> str:
        return f"checkpoint of step {self._begun.step} was not saved in {self._root}: {trouble}"

    def _write(
        self,
        state: Callable[[], dict[str, Tensor]],
        tensors: Mapping[str, Tensor],
        facts: Mapping[str, Any],
        progress: Progress,
    ) -> Path:
        """In the thread."""
        content = {**state(), **tensors}
        _refuse_nonfinite(content)
        told = {**facts, "progress": asdict(progress)}
        folder = storage.write_checkpoint(self._root, progress.step, content, told)
        self._tidy(folder, progress)
        return folder

    def _write_facts(self, facts: Mapping[str, Any], progress: Progress) -> None:
        """In the thread."""
        folder = self._root / folder_name(progress.step)
        storage.restate(folder, {**facts, "progress": asdict(progress)})
        self._tidy(folder, progress)

    def _tidy(self, folder: Path, progress: Progress) -> None:
        """Moves the pointers and removes older checkpoints, as far as that is possible: the new one is saved,
        and what is left undone is done after the next one."""
        self._copier.copy(folder)
        stay = set(self._copier.needed())
        try:
            stay |= move_pointers(self._root, folder, progress.best_step)
            storage.prune(self._root, self._keep, stay)
        except OSError as err:
            log.warning("%s is saved, but what is older is not put in order: %s", folder, err)


def move_pointers(root: Path, folder: Path, best_step: int | None) -> set[Path]:
    """Lets `latest` and `best` name the checkpoints that they are to. Returns the folder of the best one, if
    any. best_step: its step; None where none is known, as in older checkpoints, and the pointer stays."""
    point(root, "latest", folder)
    if best_step is None:
        return {best} if (best := pointed(root, "best")) is not None else set()
    best = root / folder_name(best_step)
    if pointed(root, "best") != best:
        point(root, "best", best)
    return {best}


def _weights_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if name.startswith("model.")}


def _refuse_nonfinite(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise CheckpointError(f"{name} is not finite; the older checkpoints stay")
