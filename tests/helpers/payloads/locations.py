"""URLs, paths and patterns of shards."""

from collections.abc import Iterator
from functools import partial

from payloads import Payload, Sandbox
from pipeline.data.shards.find import load_manifest

COMMANDS = [
    "pipe:SHELL",
    "pipe: SHELL",
    "PIPE:SHELL",
    "pipe://SHELL",
    "pipe:cat x | SHELL.tar",
    "|SHELL",
    "SHELL|",
    "-oCANARY",
    "--output=CANARY",
    "$(SHELL).tar",
    "`SHELL`.tar",
    "train-$(SHELL)-{0..3}.tar",
    "http://localhost/$(SHELL).tar",
    "x.tar; SHELL",
    "x.tar && SHELL",
    "x.tar\nSHELL",
    "x.tar\0SHELL",
    "file:SHELL",
    "python:PYTHON",
    "${HOME}/x.tar",
    "http://host/x.tar?token=$HOME",
    "<(SHELL)",
    "x.tar > CANARY",
]
SCHEMES = [
    *(
        "ssh://host/CANARY.tar",
        "sftp://host/x.tar",
        "ftp://host/x.tar",
        "gopher://host/x.tar",
        "smb://host/x.tar",
    ),
    *(
        "data:text/plain,x.tar",
        "reference://x.tar",
        "simplecache::file://CANARY",
        "zip://x::http://localhost/x.zip",
    ),
    *(
        "filecache::pipe:SHELL",
        "github://a:b@c/x.tar",
        "hdfs://host/x.tar",
        "local://CANARY",
        "memory://x.tar",
    ),
    *(
        "jar:file:///x!/y.tar",
        "dask://x.tar",
        "git://host/x.tar",
        "abfs://a@b/x.tar",
        "blockcache::s3://b/x.tar",
    ),
    *(
        "http://host/x.tar?a=b",
        "http://host/x.tar#a",
        "HTTP://host/x.tar",
        "https:/host/x.tar",
        "s3:bucket/x.tar",
    ),
]
TEXTS = ["\u202exrat.tar", " x.tar", "x.tar ", "", "\x1b]0;pwn\x07.tar", "x\r.tar", "a" * 5000, "\ud800.tar"]
PATTERNS = [
    *("x-{0..999999999999}.tar", "x-" + "{a,b}" * 40 + ".tar", "{0..99999}{0..99999}.tar", "x-{}.tar"),
    *(
        "x-{1}.tar",
        "x-{a..b}.tar",
        "x-{1..2",
        "x-{3..1}.tar",
        "{" * 900 + "}" * 900 + ".tar",
        "x-{-1..3}.tar",
    ),
    *("{pipe:SHELL,x}.tar", "{|SHELL,x}.tar", "x-{1..9999999999999999}.tar", "x-{0..1..2}.tar"),
]
PLACES = [
    "/proc/self/mem.tar",
    "/dev/zero",
    "/dev/stdin",
    "../precious",
    "../precious.tar",
    "/etc/passwd.tar",
]


def cases() -> Iterator[Payload]:
    for text in (*COMMANDS, *SCHEMES, *TEXTS, *PATTERNS, *PLACES):
        yield Payload(f"{text!r:.60}", partial(_load, text))
    for value in (None, 7, b"x.tar", {"x": 1}, [["x.tar"]], True):
        yield Payload(f"{value!r}", partial(_load_value, value))


def _load(text: str, sandbox: Sandbox) -> None:
    load_manifest(sandbox.fill(text))


def _load_value(value: object, sandbox: Sandbox) -> None:
    load_manifest([value])  # pyright: ignore[reportArgumentType]
