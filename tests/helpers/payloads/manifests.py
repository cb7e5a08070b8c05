"""What a manifest or an index of shards may say."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from payloads import Payload, Sandbox, linked, replace
from pipeline.data.shards.find import load_manifest

NAMES = [
    *(
        "../precious.tar",
        "/etc/x.tar",
        "a/b.tar",
        "-x.tar",
        ".x.tar",
        "x.tar\0",
        "pipe:SHELL",
        "http://h/x.tar",
    ),
    *("$(SHELL)", "x\n.tar", "\x1b]0;x\x07.tar", "..", ".tar", 7, None, ["x.tar"], {"a": 1}, True),
]
ROOTS = [
    *("pipe:SHELL", "|SHELL", "ssh://h/x", "http://h/$(SHELL)", "simplecache::file:///", "\0", "", " ", "-x"),
    *(7, [], {"a": "b"}, False),
]
ENTRIES: dict[str, list[Any]] = {
    "num_samples": [0, -1, 2**70, 1.5, "1", None, True, [], {}],
    "num_bytes": [0, -1, 2**70, 1e300, "1", None],
    "split": ["../x", "a b", "\n", "x" * 50, 7, None, []],
    "sha256": [None, 5, []],
    "index_sha256": [None, 5, {}],
}
TOPS: dict[str, list[Any]] = {
    "format": [0, 99, "1", None, [], {"__reduce__": "PYTHON"}],
    "shards": [None, {}, "x", [None], [[]], [7], []],
    "schema": [None, [1], 5, {"a": 1}],
    "classes": [None, [1], 5, [["a"]], {"0": "a"}],
    "mask_classes": [[None], 5],
    "label_noise": [
        *(5, None, ["x"], [{}], [{"kind": "PYTHON", "rate": 0.4, "seed": 0, "flips": []}]),
        *([{"kind": "symmetric", "rate": 2, "seed": 0, "flips": []}], [{"kind": "symmetric"}]),
        [{"kind": "symmetric", "rate": 0.4, "seed": 0, "flips": [[1, 2]]}],
    ],
    "digest": ["", None, 5, "PYTHON"],
}


def cases() -> Iterator[Payload]:
    for value in NAMES:
        yield Payload(f"name {value!r:.40}", partial(_changed, partial(_in_shard, "name"), value))
    for value in ROOTS:
        yield Payload(f"root {value!r:.40}", partial(_changed, lambda m, v: m.update(root=v), value))
    for field, values in ENTRIES.items():
        for value in values:
            change = partial(_in_shard, field)
            yield Payload(f"{field} {value!r:.40}", partial(_changed, change, value))
    for field, values in TOPS.items():
        for value in values:
            change = partial(_at_top, field)
            yield Payload(f"{field} {value!r:.40}", partial(_changed, change, value))
    for data in (b"", b"null", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"format":1}', b"NaN", b"1" * 5000):
        yield Payload(f"manifest {data[:12]!r}", partial(_bytes, data))


def _in_shard(field: str, manifest: dict[str, Any], value: object) -> None:
    manifest["shards"][field][0] = value


def _at_top(field: str, manifest: dict[str, Any], value: object) -> None:
    manifest[field] = value


def _changed(change: Callable[[dict[str, Any], Any], object], value: object, sandbox: Sandbox) -> None:
    path = sandbox.shards / "manifest.json"
    plain = json.loads(path.read_text())
    change(plain, sandbox.fill(value) if isinstance(value, str) else value)
    _bytes(json.dumps(plain).replace("PYTHON", sandbox.python).encode(), sandbox)


def _bytes(data: bytes, sandbox: Sandbox) -> None:
    folder = linked(sandbox.shards, sandbox.folder / "set")
    replace(folder / "manifest.json", data)
    load_manifest(str(folder))
