"""Points where the hosts of all ranks meet, and learn whether one of them cannot or shall not go on.

Every rank comes here before each micro-batch and each batch of an evaluation, with its batch or with what
kept it from that. So all ranks save together when a rank is asked to stop or its storage fails, and a rank
whose data are late is waited for here and not in a collective of the device.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch

from pipeline.engine.connect import ALONE
from pipeline.errors import PipelineError, SampleError, StopAsked, StorageError
from pipeline.interfaces import Batch
from pipeline.ranks import Ranks
from pipeline.train.signals import StopRequest
from pipeline.train.watchdog import Section, Watchdog

T = TypeVar("T")


class Meeting:
    """Where the ranks meet. Without its options, ranks that nobody can ask to stop, and that may wait.

    limit: seconds for all ranks to come, unless one says that it goes on, and for what follows. May be set
    anew.
    wants_save: asked at each meeting; where it says so on any rank, `save_asked` is set on all, until it is
    set back.
    """

    def __init__(
        self,
        ranks: Ranks,
        stop: StopRequest | None = None,
        watchdog: Watchdog | None = None,
        limit: float | None = None,
    ):
        self.limit = limit
        self.wants_save: Callable[[], bool] = lambda: False
        self.save_asked = False
        self._ranks, self._stop, self._watchdog = ranks, stop, watchdog

    def next(self, batches: Iterator[T], what: str, *, last: bool = False, patient: bool = False) -> T | None:
        """This rank's next batch, once every rank has its own; None where it has no more.

        what: what the rank is at then (`computes step 12`). last: whether it has no more already. patient:
        whether the others wait for it as long as it goes on. Raises on all ranks alike: the error of the one
        whose data cannot be read, which is a StorageError on the others; else StopAsked where a rank was
        asked to stop.
        """
        trouble, batch = None, None
        self._at(Section("waits for data", ALONE, slow=lambda: "waits for data"))
        try:
            batch = None if last else next(batches, None)
        except (SampleError, StorageError, StopAsked) as err:
            trouble = err
        self._at(Section("waits for the other ranks", self.limit, patient=True))
        self._meet(trouble)
        alone = Section(what, ALONE, slow=lambda: what)
        self._at(alone if patient else Section(what, self.limit))
        return batch

    def alone(self, what: str) -> AbstractContextManager[None]:
        """While rank 0 may work alone, for instance to save, and the others wait in `Ranks.hosts`."""
        if self._watchdog is None:
            return nullcontext()
        return self._watchdog.during(Section(what, ALONE, slow=lambda: what))

    def ends(self) -> None:
        """This rank meets nobody any more, and may take its time: trackers are told the last figures."""
        self._at(Section("ends", ALONE))

    def note(self, batch: Batch) -> None:
        """Remembers the batch that was loaded last, for the watchdog's report."""
        if self._watchdog is not None:
            self._watchdog.note_batch(batch.task, batch.keys)

    def stopping(self) -> bool:
        """Whether a rank that waits for data shall come here now, as one was asked to stop."""
        return self._stop is not None and self._stop.heard()

    def _meet(self, trouble: PipelineError | None) -> None:
        asked = isinstance(trouble, StopAsked) or (self._stop is not None and self._stop.asked)
        failed = trouble is not None and not isinstance(trouble, StopAsked)
        save = self.wants_save()
        if self._ranks.world_size > 1:
            own = torch.tensor([int(asked), self._ranks.rank + 1 if failed else 0, int(save)])
            asked, lost, save = self._ranks.hosts.largest(own).tolist()
            if lost and not failed:
                failed, trouble = True, StorageError(f"rank {lost - 1} could not read its data, and says why")
        self.save_asked |= bool(save)
        if failed and trouble is not None:
            raise trouble
        if asked:
            raise StopAsked("the run was asked to stop")

    def _at(self, section: Section) -> None:
        if self._watchdog is not None:
            self._watchdog.at(section)
