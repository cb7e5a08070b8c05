"""Variables of the environment that a launcher, a cluster or a planted file sets."""

import os
from collections.abc import Callable, Iterator
from functools import partial

from payloads import Payload, Sandbox
from pipeline.data.shards.find import load_manifest
from pipeline.engine import launched
from pipeline.errors import printable

NUMBERS = [
    "SHELL",
    "$(SHELL)",
    "`SHELL`",
    "1;SHELL",
    "-1",
    "\u00b2",
    "\u0663",
    "1e3",
    "0x1",
    "",
    " 1",
    "9" * 5000,
    "1\n2",
    "True",
]
RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
REWRITES = {
    "GOPEN_REWRITE": "/=pipe:SHELL ",
    "WDS_SECURE": "0",
    "PYTORCH_JIT_USE_NNC": "SHELL",
    "FSSPEC_FILE": '{"auto_mkdir": "PYTHON"}',
    "FSSPEC_S3_ENDPOINT_URL": "pipe:SHELL",
    "TMPDIR": "$(SHELL)",
    "DTEM_CACHE": "|SHELL",
    "LS_COLORS": "SHELL",
    "PAGER": "SHELL",
    "GIT_SSH_COMMAND": "SHELL",
}


def cases() -> Iterator[Payload]:
    for name in RANKS:
        for value in NUMBERS:
            yield Payload(f"{name}={value!r:.30}", partial(_launched, {name: value}))
    for value in [*NUMBERS[:9], "22;SHELL", "70000", "abc"]:
        yield Payload(f"MASTER_PORT={value!r:.30}", partial(_launched, {"MASTER_PORT": value}))
    for name, value in REWRITES.items():
        yield Payload(f"{name}={value!r}", partial(_with, {name: value}, _load), refused=False)
    yield Payload("a secret in the environment", _told, refused=False)


def _with(values: dict[str, str], action: Callable[[Sandbox], None], sandbox: Sandbox) -> None:
    before = dict(os.environ)
    os.environ.update({name: sandbox.fill(value) for name, value in values.items()})
    try:
        action(sandbox)
    finally:
        os.environ.clear()
        os.environ.update(before)


def _launched(values: dict[str, str], sandbox: Sandbox) -> None:
    _with(values, lambda _: _ask(), sandbox)


def _ask() -> None:
    launched.rank()
    launched.local_rank()
    launched.world_size()


def _load(sandbox: Sandbox) -> None:
    assert load_manifest(str(sandbox.shards)).num_samples


def _told(sandbox: Sandbox) -> None:
    _with({"X_API_KEY": "PYTHON"}, lambda _: _assert_hidden(sandbox), sandbox)


def _assert_hidden(sandbox: Sandbox) -> None:
    assert sandbox.python not in printable(f"401 of {sandbox.python}")
