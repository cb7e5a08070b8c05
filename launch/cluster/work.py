"""What one host has to do: the processes that it starts, as a line of JSON that the launcher sends it.

Arguments and environment travel as data and not through a shell, so that every value arrives byte for byte,
whatever the login shell of the host, and no secret stands in a list of processes.
"""

import json
import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass

PREEMPTIONS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""Signals that ask a run to stop."""
ASK = signal.SIGUSR1
"""The one of them that a rank gets, whichever came. mpirun passes it on to its ranks, and no other."""
SILENCE = 20.0
"""Seconds without a beat of the launcher, after which a host takes it for lost."""
BEAT = 2.0
"""Seconds between two beats of the launcher."""
GRACE = 8.0
"""Seconds that a rank has to leave after SIGTERM, once another has failed or the launcher is lost; then it is
killed. SILENCE + GRACE stay below 30 s."""


@dataclass(frozen=True)
class HostWork:
    """The processes of a host: what each runs, where, and with what environment besides the host's own."""

    host: str
    folder: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    processes: Mapping[str, Mapping[str, str]]
    """Name -> what the environment of this process alone has."""
    beats: bool
    """Whether the launcher beats; over a network it does."""

    def line(self) -> bytes:
        return (json.dumps(asdict(self)) + "\n").encode("ascii")

    @staticmethod
    def of(line: bytes) -> "HostWork":
        """Raises ValueError, KeyError or TypeError where the line is no work of a host."""
        plain = json.loads(line)
        return HostWork(**plain | {"argv": tuple(plain["argv"])})


STOP_LINE = b"stop\n"
"""Asks a host to ask its processes to stop. Any other line is a beat."""
