"""What runs on each host of a launch: `python -P -m launch.cluster.host_agent`.

It reads its work from standard input, starts the processes, and stays until they are done. Its standard
input is its life line. It passes requests to stop on; it ends with the first process that fails, or when the
launcher is lost, and then nothing that it started is left.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from types import FrameType

from launch.cluster.life_line import LifeLine
from launch.cluster.work import ASK, GRACE, PREEMPTIONS, STOP_LINE, HostWork
from pipeline.processes import PARENT, adopt_orphans, kill_descendants


class HostAgent:
    """Starts and ends the processes of one host."""

    def __init__(self, work: HostWork, line: LifeLine):
        self._work, self._line = work, line
        self._running: dict[str, subprocess.Popen] = {}

    def run(self) -> int:
        """0 if all processes ended with 0, else the status of the first that did not; 1 if the launcher is
        lost."""
        for number in PREEMPTIONS:
            signal.signal(number, self._ask)
        try:
            for name, own in self._work.processes.items():
                self._running[name] = self._start(own)
            return self._watch()
        finally:
            if left := kill_descendants():
                self._say(f"processes {left} were killed and have not ended yet")

    def _start(self, own: Mapping[str, str]) -> subprocess.Popen:
        """In a session of its own, so that a key of the terminal reaches it only through the launcher."""
        return subprocess.Popen(
            self._work.argv,
            cwd=self._work.folder,
            env={**os.environ, **self._work.env, **own, PARENT: str(os.getpid())},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _watch(self) -> int:
        while self._running:
            for line in self._line.lines(wait=0.1):
                if line == STOP_LINE.rstrip():
                    self._ask()
            if reason := self._line.lost(self._work.beats):
                self._say(f"{reason}; its processes are ended")
                self._end()
                return 1
            if status := self._failed():
                self._end()
                return status
        return 0

    def _failed(self) -> int:
        """The exit status of a process that failed, as a shell counts it; 0 if none did. Forgets those that
        are done."""
        for name, process in list(self._running.items()):
            if (code := process.poll()) is None:
                continue
            del self._running[name]
            if code:
                how = f"by {_name(-code)}" if code < 0 else f"with status {code}"
                self._say(f"{name} ended {how}")
                return 128 - code if code < 0 else code
        return 0

    def _end(self) -> None:
        """Asks the processes to leave, and waits for them up to GRACE; what is left is killed by `run`."""
        self._send(signal.SIGTERM)
        until = time.monotonic() + GRACE
        while time.monotonic() < until and any(p.poll() is None for p in self._running.values()):
            time.sleep(0.05)

    def _ask(self, number: int = ASK, frame: FrameType | None = None) -> None:
        self._send(ASK)

    def _send(self, number: int) -> None:
        for process in list(self._running.values()):
            process.send_signal(number)

    def _say(self, text: str) -> None:
        try:
            print(f"{self._work.host}: {text}", file=sys.stderr, flush=True)
        except OSError:  # the launcher, who would read it, is gone
            pass


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # one for real-time programs
        return f"signal {number}"


def main() -> int:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the life line says when the launcher is gone
    adopt_orphans()
    line = LifeLine(sys.stdin.fileno())
    if not (first := line.first()):
        return 1
    return HostAgent(HostWork.of(first), line).run()


if __name__ == "__main__":
    sys.exit(main())
