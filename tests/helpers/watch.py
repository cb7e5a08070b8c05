"""Watches what a piece of code does outside of a folder: processes, connections, unpickling, code from data,
and changes of files.

Python tells its audit hooks of these before it does them, whichever package asks. A canary file tells of the
rest.
"""

import os
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType
from typing import Any

STARTS = {
    *(
        "os.system",
        "os.exec",
        "os.fork",
        "os.forkpty",
        "os.posix_spawn",
        "os.spawn",
        "os.startfile",
        "pty.spawn",
    ),
    *("subprocess.Popen", "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"),
    *("urllib.Request", "ftplib.connect", "telnetlib.Telnet.open", "webbrowser.open", "pickle.find_class"),
}
"""Events that no hostile input may cause."""
CHANGES = {
    **dict.fromkeys(("os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.chown", "os.truncate"), slice(1)),
    **dict.fromkeys(("os.link", "os.symlink"), slice(1, 2)),
    "os.rename": slice(2),
}
"""Events that may happen inside the folder only -> which of their arguments are the paths that change."""
WORD = "canary"
"""In every payload that is code."""
PACKAGES = sysconfig.get_path("purelib")
"""Their code is no payload; transformers has a model of that name."""
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watch:
    """The forbidden events of a piece of code, in words."""

    def __init__(self, folder: Path):
        self._folder = os.path.realpath(folder)
        self.events: list[str] = []

    def note(self, event: str, args: tuple[Any, ...]) -> None:
        if event in STARTS:
            self.events.append(f"{event} {args[:2]!r:.200}")
        elif (
            event == "exec"
            and isinstance(args[0], CodeType)
            and not args[0].co_filename.startswith(PACKAGES)
            and WORD in repr((args[0].co_consts, args[0].co_names))
        ):
            self.events.append(f"exec {args[0].co_filename}")
        elif event == "import" and WORD in str(args[0]):
            self.events.append(f"import {args[0]}")
        elif event == "open" and isinstance(args[2], int) and args[2] & _WRITES:
            self._note_path(event, args[0], follows=not args[2] & os.O_NOFOLLOW)
        elif event in CHANGES:
            for path in args[CHANGES[event]]:
                self._note_path(event, path)

    def _note_path(self, event: str, path: Any, *, follows: bool = False) -> None:
        if isinstance(path, int):
            return
        text = os.fsdecode(path)
        parent = os.path.realpath(os.path.dirname(os.path.abspath(text)))
        own = os.path.join(parent, os.path.basename(text))
        real = os.path.realpath(text) if follows else own
        inside = real.startswith(f"{self._folder}{os.sep}") or real == self._folder
        if not (inside or real == os.devnull or "__pycache__" in real):
            self.events.append(f"{event} {text!r:.200}")


_now: list[Watch] = []
_added = False


@contextmanager
def watching(folder: Path) -> Iterator[Watch]:
    """What happens while it is open, in all threads of this process."""
    global _added
    if not _added:
        sys.addaudithook(lambda event, args: _now[-1].note(event, args) if _now else None)
        _added = True  # a hook stays for the life of its process
    watch = Watch(folder)
    _now.append(watch)
    try:
        yield watch
    finally:
        _now.remove(watch)
