"""Configs in YAML and JSON, class names and captions in JSON."""

import json
from collections.abc import Iterator
from functools import partial

from payloads import Payload, Sandbox
from pipeline.config.load import load_config
from pipeline.data.members.decode import decode_captions
from pipeline.data.shards.describe import read_names

YAML = [
    *("!!python/object/apply:os.system ['SHELL']", "!!python/object/new:os.system ['SHELL']"),
    *("!!python/name:os.system", "!!python/module:canary_module", "!!python/object:os.Popen {}"),
    *('!!python/object/apply:eval ["PYTHON"]', "!!python/object/apply:subprocess.Popen [[touch, CANARY]]"),
    *("!!python/tuple [1]", "!!python/complex 1j", "!!python/bytes YQ==", "!!bool abc", "!!timestamp abc"),
    *(
        "!!binary PYTHON",
        "!!set {a, b}",
        "!!omap [a: 1]",
        "!canary x",
        "!<tag:yaml.org,2002:python/name:os.system> ''",
    ),
    *(
        "&a [*a]",
        "&a {<<: *a}",
        "[&a x, *a]",
        "!!float abc",
        "!!int abc",
        "{? [a]: b}",
        "{? {a: b}: c}",
        "<<: 5",
    ),
    *(
        "=: 1",
        "!!merge x",
        "%TAG ! tag:yaml.org,2002:python/\n--- !object/apply:os.system ['SHELL']",
        "\x07",
        "- - -",
    ),
    *("!!null x", "---\na: 1\n---\nb: 2", "a: 1\na: 2", "@x", "`SHELL`", "\tx: 1", "\ud800", "[" * 900),
]
"""Each is the whole of a file, and then the value of a setting."""
JSON = [
    *(
        "",
        "null",
        "[]",
        "7",
        '"PYTHON"',
        "NaN",
        "{",
        '{"a": 1, "a": 2}',
        "[" * 100_000,
        '{"a":' * 100_000,
        "\xff",
    ),
    *(
        '{"__class__": "os.system", "__reduce__": "PYTHON"}',
        '{"_base_": "CANARY"}',
        '{"_target_": "os.system"}',
    ),
    *(
        '{"py/reduce": [{"py/function": "os.system"}, {"py/tuple": ["SHELL"]}]}',
        '{"custom_imports": {"imports": ["canary_module"]}}',
    ),
    *('{"output": "x"}', '{"$ref": "file:///etc/passwd"}', "1" * 5000, '{"tasks": {"__proto__": {}}}'),
]
CAPTIONS = [
    *(
        "",
        "null",
        "[]",
        "7",
        "{}",
        '{"captions": null}',
        '{"captions": []}',
        '{"captions": [1]}',
        '{"captions": ["\\ud800"]}',
    ),
    *(
        '{"captions": "PYTHON"}',
        '{"captions": [""]}',
        "[" * 100_000,
        '{"captions": {"a": "b"}}',
        '{"captions": [["a"]]}',
    ),
    '{"captions": ["' + "a" * (1 << 20) + '"]}',
]
NAMES = [
    *("", "null", "7", "{}", '{"x": []}', '{"classes": "a"}', "[1]", '["a", "a"]', "[" * 100_000, '[["a"]]'),
    *('{"classes": ["a"], "PYTHON": 1}', '"PYTHON"', '{"classes": {"a": "b"}}'),
]


def cases() -> Iterator[Payload]:
    for text in YAML:
        yield Payload(f"yaml {text!r:.60}", partial(_config, "x.yaml", text))
        yield Payload(f"yaml, output: {text!r:.60}", partial(_config, "x.yml", f"seed: 1\noutput: {text}"))
    for text in JSON:
        yield Payload(f"json {text!r:.60}", partial(_config, "x.json", text))
    for text in CAPTIONS:
        yield Payload(f"captions {text!r:.60}", partial(_captions, text))
    for text in NAMES:
        yield Payload(f"classes.json {text!r:.60}", partial(_names, text))
    for name in ("x.pkl", "x.toml", "x.sh", "x", "x.py.txt", "x.PY"):
        yield Payload(f"config named {name}", partial(_config, name, "PYTHON"))
    yield Payload("config that is a pipe of the system", _fifo)
    yield Payload(
        "config of a megabyte and more", partial(_config, "x.json", json.dumps({"a": "b" * (1 << 20)}))
    )


def _config(name: str, text: str, sandbox: Sandbox) -> None:
    path = sandbox.folder / name
    path.write_text(sandbox.fill(text), encoding="utf-8", errors="surrogatepass")
    load_config(path)


def _captions(text: str, sandbox: Sandbox) -> None:
    decode_captions(sandbox.fill(text).encode())


def _names(text: str, sandbox: Sandbox) -> None:
    (sandbox.folder / "classes.json").write_text(sandbox.fill(text))
    read_names(str(sandbox.folder))


def _fifo(sandbox: Sandbox) -> None:
    import os

    os.mkfifo(sandbox.folder / "x.json")
    load_config(sandbox.folder / "x.json")
