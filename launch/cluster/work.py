"""What one host has to do: the processes that it starts, as a line of JSON that the launcher sends it.

Arguments and environment travel as data and not through a shell, so that every value arrives byte for byte,
whatever the login shell of the host, and no secret stands in a list of processes.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

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


def signal_line(number: int) -> bytes:
    """Asks a host to pass a signal to its processes."""
    return f"signal {int(number)}\n".encode()


def signal_of(line: bytes) -> int | None:
    """The number in a `signal_line`; None for a beat."""
    word, _, number = line.partition(b" ")
    return int(number) if word == b"signal" and number.isdigit() else None
