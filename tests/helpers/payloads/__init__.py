"""Hostile inputs, by class. Each is fed to the reader that a user's command would feed it to.

A class is a file here that yields `Payload`s from `cases()`, and its name in CLASSES. What a payload tries is
always the same: to make `Sandbox.canary`, or to touch what lies outside of `Sandbox.folder`.
"""

import importlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

CLASSES = (
    "locations",
    "manifests",
    "tars",
    "pickles",
    "documents",
    "options",
    "names",
    "runs",
    "adapters",
    "links",
    "pages",
    "environment",
    "cluster",
)


@dataclass(frozen=True)
class Sandbox:
    """Where a payload is tried. folder: the current folder; all that may be written is in it."""

    folder: Path
    run: Path
    """A trained run; to be copied, not changed."""
    shards: Path
    """A set of shards; to be copied, not changed."""

    @property
    def canary(self) -> Path:
        return self.folder.parent / "canary"

    @property
    def precious(self) -> Path:
        """A file outside of the folder, with the text `precious`."""
        return self.folder.parent / "precious"

    @property
    def shell(self) -> str:
        """A command that makes the canary."""
        return f"touch {self.canary}"

    @property
    def python(self) -> str:
        """An expression that makes the canary."""
        return f"__import__('os').system('touch {self.canary}')"

    def fill(self, text: str) -> str:
        """The text with the payload in the place of CANARY, SHELL and PYTHON."""
        return (
            text.replace("CANARY", str(self.canary))
            .replace("SHELL", self.shell)
            .replace("PYTHON", self.python)
        )


@dataclass(frozen=True)
class Payload:
    """One hostile input. refused: whether its reader has to raise a typed error; else it has to end without
    an error, and may check more by `assert`."""

    name: str
    run: Callable[[Sandbox], object]
    refused: bool = True


def linked(source: Path, target: Path) -> Path:
    """A copy of a folder by hard links, whose files are to be replaced, not changed; see `replace`."""
    return shutil.copytree(source, target, copy_function=os.link)


def replace(path: Path, data: bytes) -> Path:
    """The path, which now has another file there."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    return path


def cases() -> Iterator[tuple[str, Payload]]:
    """Yields (class, payload)."""
    # all are imported first: what they bring looks at the current folder, which a payload leaves removed
    modules = {name: importlib.import_module(f"payloads.{name}") for name in CLASSES}
    for name, module in modules.items():
        for payload in module.cases():
            yield name, payload
