"""Faults of storage, as the reading of shards meets them; no file is touched."""

import errno
import struct
import time

from pipeline.data.stalls import shared_bytes
from pipeline.train.faults.fault import FAULTS, AtStep, Victim
from pipeline.train.faults.processes import positive

NONE, NEXT = -1, -2


class Disturbance:
    """Stands between a file of a shard and who reads it. Its state is in memory that data workers
    share with the process that sets it."""

    _LAYOUT = struct.Struct("dq")

    def __init__(self) -> None:
        self._memory = shared_bytes(self._LAYOUT.size)
        self._write(0.0, NONE)

    def silence(self, seconds: float) -> None:
        """The storage does not answer for so many seconds from now on."""
        self._write(time.monotonic() + seconds, self._read()[1])

    def corrupt_next(self) -> None:
        """The shard that is read next is garbage from now on."""
        self._write(self._read()[0], NEXT)

    def __call__(self, shard: int, members: dict[str, bytes]) -> dict[str, bytes]:
        until, corrupt = self._read()
        if time.monotonic() < until:
            raise OSError(errno.EIO, "no answer (injected)")
        if corrupt == NEXT:
            corrupt = shard
            self._write(until, shard)
        if corrupt != shard:
            return members
        return {suffix: b"\xff" * len(data) for suffix, data in members.items()}

    def _read(self) -> tuple[float, int]:
        return self._LAYOUT.unpack_from(self._memory)

    def _write(self, until: float, corrupt: int) -> None:
        self._LAYOUT.pack_into(self._memory, 0, until, corrupt)


class Disturbing(AtStep):
    """Base of a fault of the training shards of all tasks."""

    def __init__(self, step: int, rank: int | None):
        super().__init__(step, rank)
        self.disturbance = Disturbance()

    def prepare(self, run: Victim) -> None:
        """Before data workers start."""
        for stream in run.streams.values():
            stream.disturb(self.disturbance)


@FAULTS.register("outage")
class Outage(Disturbing):
    """The storage of training shards does not answer for some seconds; more than four fifths of
    data.max_wait end the run."""

    def __init__(self, *, step: int, seconds: float, rank: int | None = None):
        super().__init__(step, rank)
        self._seconds = positive("outage", seconds)

    def strike(self, run: Victim) -> None:
        self.disturbance.silence(self._seconds)


@FAULTS.register("corrupt-shard")
class CorruptShard(Disturbing):
    """Every sample of the training shard that is read next is garbage from then on, for this rank."""

    def __init__(self, *, step: int, rank: int | None = None):
        super().__init__(step, rank)

    def strike(self, run: Victim) -> None:
        self.disturbance.corrupt_next()
