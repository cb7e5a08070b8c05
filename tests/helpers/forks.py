"""Processes of Python that begin with torch imported, as forks of one server (`fork_server.py`). To import
torch, our package and DeepSpeed anew takes 4 to 10 s of a core each time.

What looks at imports, at the start of an interpreter or at its last end takes a process of its own, by
`subprocess`.
"""

import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fork_server
from fork_server import Request

ROOT = Path(__file__).parents[2]
PLACE = "DTEM_TEST_FORKS"
"""Variable with the socket of the server."""
GENEROUS = 600.0
"""Seconds. A process that has not ended then never will."""


@contextmanager
def server() -> Iterator[None]:
    """Processes can be forked inside, by this one and by those that it starts."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ[PLACE] = f"{folder}/forks"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.environ[PLACE])
            listener.listen(64)
            # as `environment` of deepspeed_launch.py has it, for the import of DeepSpeed
            ours = {"PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu", "TORCHDYNAMO_DISABLE": "1"}
            process = subprocess.Popen(
                [sys.executable, fork_server.__file__, str(listener.fileno())],
                stdin=subprocess.PIPE,
                env=os.environ | ours | {"OMP_NUM_THREADS": "1"},
                pass_fds=[listener.fileno()],
            )
        try:
            yield
        finally:
            process.communicate()
            del os.environ[PLACE]


class Fork:
    """A running process: `Fork("-c", code)` does what `python -c code` does, with nothing to read from stdin.
    It is in a session of its own, and its parent is a process of the server.

    call: a function and its arguments, run instead, which can be pickled. env, cwd: as of `subprocess.Popen`.
    imports: modules that are to be imported already, beside ours.
    """

    def __init__(
        self,
        *words: str | Path,
        call: tuple[Callable[..., Any], *tuple[Any, ...]] | None = None,
        env: dict[str, str] | None = None,
        cwd: Path = ROOT,
        imports: Sequence[str] = (),
    ):
        environment = dict(os.environ if env is None else env)
        own = list(filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)))
        request = Request(
            words=tuple(map(str, words)),
            call=call and pickle.dumps((call[0], call[1:])),
            paths=tuple(sys.path if call else own),
            environment=environment,
            folder=str(cwd),
            imports=tuple(imports),
        )
        self.returncode: int | None = None
        self._files = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(os.environ[PLACE])
        socket.send_fds(self._connection, [b"x"], [file.fileno() for file in self._files])
        self._connection.sendall(pickle.dumps(request))
        self.pid = self._number()

    def _number(self) -> int:
        """The next one that the server tells."""
        text = b""
        while not text.endswith(b"\n"):
            text += (piece := self._connection.recv(1))
            assert piece, "the server of forks has ended"
        return int(text)

    @property
    def out(self) -> str:
        """What it has written to stdout so far."""
        return self._text(0)

    @property
    def err(self) -> str:
        return self._text(1)

    def _text(self, number: int) -> str:
        file = self._files[number].fileno()
        return os.pread(file, os.fstat(file).st_size, 0).decode()

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
            self.returncode = self._number()
        return self.returncode

    def wait(self, timeout: float = GENEROUS) -> int:
        """The exit status. A process that takes longer is killed with its session, and fails."""
        if self.returncode is None and not select.select([self._connection], [], [], timeout)[0]:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            raise AssertionError(f"it did not end; it had written\n{self.out}\n{self.err}")
        code = self.poll()
        assert code is not None
        return code

    def until(self, text: str, timeout: float = GENEROUS) -> None:
        """Returns once it has written the text."""
        end = time.monotonic() + timeout
        while True:
            going = self.poll() is None and time.monotonic() < end
            if text in self.out + self.err:
                return
            assert going, f"no '{text}' in\n{self.out}\n{self.err}"
            time.sleep(0.05)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(*words: str | Path, timeout: float = GENEROUS, **options: Any) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run([sys.executable, *words], capture_output=True, text=True)`."""
    fork = Fork(*words, **options)
    return subprocess.CompletedProcess(words, fork.wait(timeout), fork.out, fork.err)
