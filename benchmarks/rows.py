"""A row of the table of claims: one script with its arguments, and what it needs."""

import shlex
from dataclasses import dataclass
from pathlib import Path

WORK = "WORK"
"""In arguments: the folder of the runs that scripts train, and from which later scripts start."""


@dataclass(frozen=True)
class Row:
    """One record. arguments: of the record; short: follow them in a short run; peers: those that the script
    runs beside ours; needs: see `lacking`; into: record that the script adds to, where it is not one of its
    own; limit: seconds on a GPU, after which it is ended."""

    name: str
    script: str
    arguments: str = ""
    short: str = ""
    needs: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    into: str = ""
    limit: float | None = None

    def command(self, work: Path, record: Path, *, short: bool, peers: dict[str, str]) -> list[str]:
        words = shlex.split(f"{self.arguments} {self.short if short else ''}".replace(WORK, str(work)))
        given = [word for peer in self.peers if peer in peers for word in ("--peer", f"{peer}={peers[peer]}")]
        return ["python", f"benchmarks/{self.script}", *words, *given, "--record", str(record)]
