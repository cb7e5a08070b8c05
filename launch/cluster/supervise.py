"""The launcher's side of a launch on hosts: it starts their agents, beats, passes signals on, and ends all
when one has failed.

Restarts. With `--restarts N` all hosts are ended and started again, N times at most, whatever failed: a rank,
an agent, a connection. A host that is not back is waited for. torch's elastic agent (`--backend torchrun`)
counts restarts on each host for itself and cannot replace an agent that is lost. DeepSpeed's elastic agent is
built on it, and asks for its elasticity settings, which change the batch size. So the backends `local`,
`deepspeed` and `mpi`, whose ranks are started without an agent of torch's, restart here: one count for all
hosts, and a port of its own for each start.
"""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType

from launch.cluster.preflight import HostsNotReady
from launch.cluster.work import BEAT, GRACE, PREEMPTIONS, STOP_LINE, HostWork
from pipeline.errors import counted

LEAVES = GRACE + 14.0
"""Seconds that an agent has to end what it started (GRACE, then 10 s) and itself; then its connection is
ended, and its life line with it."""
SSH_FAILED = 255
PAUSE, LONGEST_PAUSE = 3.0, 120.0
"""Seconds between the end of a failed start and the next; and between questions to hosts that are not back,
which double."""
COMES_BACK = 1800.0
"""Seconds for a host to come back, for instance from a reboot."""


@dataclass(frozen=True)
class Start:
    """How the agent of a host is started, and what it is sent."""

    argv: Sequence[str]
    work: HostWork


class Signals:
    """Context manager that hears the signals that ask a run to stop; what it has heard stays. A third SIGINT
    asks to end at once. Outside, between two starts, they end the launcher as they end any program.
    """

    def __init__(self) -> None:
        self.stopping = self._told = False
        self._interrupts = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Signals":
        self._before = {number: signal.signal(number, self._receive) for number in PREEMPTIONS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    @property
    def at_once(self) -> bool:
        return self._interrupts > 2

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += number == signal.SIGINT
        self.stopping = True

    def news(self) -> bool:
        """Whether a request to stop has come, the first time that this is asked then."""
        told, self._told = self._told, self.stopping
        return self.stopping and not told


class _Agent:
    """The connection to the agent of one host."""

    def __init__(self, start: Start):
        self.host = start.work.host
        # in a session of its own: a key of the terminal must not end ssh
        self._process = subprocess.Popen(start.argv, stdin=subprocess.PIPE, start_new_session=True)
        self.send(start.work.line())

    def send(self, line: bytes) -> None:
        stream = self._process.stdin
        assert stream is not None
        try:
            stream.write(line)
            stream.flush()
        except OSError:  # it has ended: its status says why
            pass

    def status(self) -> int | None:
        """Its exit status, as a shell counts it; None while it runs."""
        code = self._process.poll()
        return 128 - code if code is not None and code < 0 else code

    def end(self) -> None:
        """Cuts the life line: the agent ends what it started, and itself."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except OSError:
            pass

    def kill(self) -> None:
        if self.status() is None:
            print(f"{self.host}: its agent does not answer; the connection is ended", file=sys.stderr)
            self._process.kill()
            self._process.wait()


def run_hosts(starts: Sequence[Start], signals: Signals) -> int:
    """Runs the work of all hosts. 0 if all ended with 0, or the status of the first that did not. No process
    of it is left then, on any host that answers. A request to stop is passed on meanwhile."""
    with signals:
        agents = [_Agent(start) for start in starts]
        try:
            return _watch(agents, signals)
        finally:
            for agent in agents:
                agent.end()
            until = time.monotonic() + LEAVES
            while time.monotonic() < until and any(agent.status() is None for agent in agents):
                time.sleep(0.05)
            for agent in agents:
                agent.kill()


def _watch(agents: Sequence[_Agent], signals: Signals) -> int:
    beaten = time.monotonic()
    while True:
        statuses = [agent.status() for agent in agents]
        for agent, status in zip(agents, statuses, strict=True):
            if status:
                if status == SSH_FAILED:
                    print(
                        f"{agent.host}: the connection of ssh failed or was lost", file=sys.stderr, flush=True
                    )
                return status
        if not any(status is None for status in statuses):
            return 0
        if signals.at_once:
            return 128 + signal.SIGINT
        lines = [STOP_LINE] if signals.news() else []
        if time.monotonic() - beaten > BEAT:
            beaten = time.monotonic()
            lines.append(b"\n")
        for agent in agents:
            for line in lines:
                agent.send(line)
        time.sleep(0.1)


def with_restarts(start: Callable[[bool, Signals], int], restarts: int) -> int:
    """Calls `start(again, signals)` until it is done: 0, a user's mistake (2), a request to stop, or more
    failures than `restarts`. Returns its last status; 0 where a rank was asked to stop before it heeded that.
    Raises HostsNotReady for the first start, and where a host does not come back."""
    signals = Signals()
    status = start(False, signals)
    for left in reversed(range(restarts)):
        if status in (0, 2) or signals.stopping:
            break
        more = f"{counted(left, 'restart')} left after this"
        print(f"the run failed with status {status} and starts again; {more}", file=sys.stderr, flush=True)
        status = _start_again(start, signals)
    asked = {128 + signal.SIGTERM, 128 + signal.SIGUSR1}
    return 0 if signals.stopping and status in asked else status


def _start_again(start: Callable[[bool, Signals], int], signals: Signals) -> int:
    pause, until = PAUSE, time.monotonic() + COMES_BACK
    while True:
        time.sleep(pause * random.uniform(0.5, 1.0))
        try:
            return start(True, signals)
        except HostsNotReady as err:
            if time.monotonic() > until:
                raise
            print(f"{err}\nthey are asked again", file=sys.stderr, flush=True)
        pause = min(2 * pause, LONGEST_PAUSE)
