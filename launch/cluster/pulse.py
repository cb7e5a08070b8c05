"""The pulse of a host's agent: a byte among what its ranks print, by which the launcher knows that the agent
goes on. ssh answers for a host whose agent hangs or is stopped.
"""

import os
import threading
import time
from contextlib import suppress
from typing import IO

from launch.cluster.work import BEAT

PULSE = b"\0"
"""No text has it, so it is left out of what is passed on."""
STILL = 60.0
"""Seconds without a pulse, after which an agent counts as hanging."""
LONGEST = 1 << 20
"""Bytes of a line that is waited for."""
_WRITING = threading.Lock()


class Pulse:
    """The agent's end. `turn` says that the agent's own loop goes on; without it the pulse ends too."""

    def __init__(self) -> None:
        self._turned = time.monotonic()
        # a thread, as the pipe may be full while the launcher's terminal stands still
        threading.Thread(target=self._beat, name="pulse", daemon=True).start()

    def turn(self) -> None:
        self._turned = time.monotonic()

    def _beat(self) -> None:
        while True:
            if time.monotonic() - self._turned < STILL:
                try:
                    os.write(1, PULSE)
                except OSError:  # the launcher is gone
                    return
            time.sleep(BEAT)


class Hearing:
    """The launcher's end: passes on to its own standard output, line by line, what comes from an agent, and
    listens."""

    def __init__(self, stream: IO[bytes]):
        self._stream = stream
        self._waits_since: float | None = time.monotonic()
        """None while something is passed on, which may take as long as it will."""
        self._thread = threading.Thread(target=self._pass_on, name="output of a host", daemon=True)
        self._thread.start()

    def still(self) -> bool:
        """Whether nothing has come for too long."""
        since = self._waits_since
        return since is not None and time.monotonic() - since > STILL

    def finish(self, seconds: float) -> None:
        """Waits until all is passed on that was printed, up to so many seconds."""
        self._thread.join(seconds)

    def _pass_on(self) -> None:
        begun = b""
        with self._stream:
            while content := os.read(self._stream.fileno(), 1 << 16):
                self._waits_since = None
                lines, end, begun = (begun + content.replace(PULSE, b"")).rpartition(b"\n")
                if len(begun) > LONGEST:
                    lines, begun = lines + end + begun, b""
                _write(lines + end)
                self._waits_since = time.monotonic()
        self._waits_since = None
        _write(begun)


def _write(text: bytes) -> None:
    with _WRITING, suppress(OSError):  # nobody may read it any more
        while text:
            text = text[os.write(1, text) :]
