"""What a stranger's checkpoint may say: manifests whose hash fits, and pointers."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from checkpointkit import forge
from safetensors.torch import save_file

from launch.saved.run import read_run
from payloads import Payload, Sandbox, replace
from payloads.pickles import checkpoint_of
from pipeline import run_folder
from pipeline.backbone.weights.files import read_state_dict
from pipeline.files import sha256_of

FACTS: dict[str, list[Any]] = {
    "format": [0, 2, "1", None, [], {"a": 1}],
    "step": ["8\nssh-ed25519 AAAA", -1, 1.5, True, None, 10**30, "PYTHON", []],
    "files": [
        None,
        [],
        {"../../precious": {"sha256": ""}},
        {"model.safetensors": {}},
        {"/etc/passwd": {"sha256": "x"}},
    ],
    "config": [None, [], "PYTHON", {}, {"_target_": "os.system"}, {"tasks": {}}],
    "versions": [[], {"torch": 1}, "PYTHON"],
    "commit": [7, []],
    "progress": [None, {}, {"step": "PYTHON"}],
    "classes": [[], {"digits": "abc"}, {"digits": [1]}],
    "streams": [[], {"digits": "PYTHON"}],
}
NAMES = [
    "../x.safetensors",
    "model.pkl",
    "model.safetensors\0",
    "MODEL.safetensors",
    "extra.safetensors",
    "",
    "|SHELL",
    "model.pt",
]
POINTERS = [
    *(
        "../../precious",
        "/etc",
        "step_00000004\nSHELL",
        "step_00000004/../../..",
        "|SHELL",
        "",
        "\0",
        "step_99999999",
    ),
    *("step_" + "9" * 5000, "STEP_00000004", "..", "step_\u0661"),
]
BYTES = [b"\xff\xfe", b"\x00" * 64, b"a" * 10_000_000]
DOCUMENTS = [
    b"",
    b"null",
    b"[]",
    b"7",
    b"{",
    b"\xff",
    b"[" * 200_000,
    b'{"a":' * 100_000,
    b"NaN",
    b"1" * 5000,
    b'{"shards": []}',
]
TENSORS: dict[str, bytes] = {
    "nothing": b"",
    "header longer than the file": (2**40).to_bytes(8, "little") + b"{}",
    "header of 2^63": (2**63).to_bytes(8, "little"),
    "no JSON": (4).to_bytes(8, "little") + b"PYTH",
    "deep JSON": (100_000).to_bytes(8, "little") + b"[" * 100_000,
    "offsets outside": b"",
    "shape of 2^60": b"",
    "overlap": b"",
    "unknown dtype": b"",
    "gap": b"",
}
HEADERS: dict[str, dict[str, Any]] = {
    "offsets outside": {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}},
    "shape of 2^60": {"a": {"dtype": "F32", "shape": [2**60], "data_offsets": [0, 8]}},
    "overlap": {n: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for n in "ab"},
    "unknown dtype": {"a": {"dtype": "PY", "shape": [1], "data_offsets": [0, 8]}},
    "gap": {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
}


def cases() -> Iterator[Payload]:
    for field, values in FACTS.items():
        for value in values:
            yield Payload(f"{field} {value!r:.50}", partial(_forged, field, value))
    for name in NAMES:
        change = {name: {"sha256": "0" * 64}}
        yield Payload(f"file {name!r}", partial(_forged, "files", change))
    for text in POINTERS:
        yield Payload(f"best {text!r:.40}", partial(_pointer, "best", text.encode()), refused=False)
        yield Payload(f"latest {text!r:.40}", partial(_pointer, "latest", text.encode()), refused=False)
    for data in BYTES:
        yield Payload(f"best {data[:8]!r}", partial(_pointer, "best", data), refused=False)
    for data in DOCUMENTS:
        yield Payload(f"manifest {data[:12]!r}", partial(_document, data))
    for name, data in TENSORS.items():
        yield Payload(f"tensors: {name}", partial(_tensors, name, data))
        yield Payload(f"weights: {name}", partial(_weights, name, data))
    for text in ("PYTHON", "$(SHELL)", "9" * 5000 + "x1", "-1x2", "1x2\n"):
        yield Payload(f"grid {text!r:.30} in a file of tensors", partial(_grid, text), refused=False)
    for name in ("../precious", "/etc", "step_00000004/../..", "\0", "", "step_99999999", "*"):
        yield Payload(f"--checkpoint {name!r}", partial(_chosen, name))


def _forged(field: str, value: Any, sandbox: Sandbox) -> None:
    folder = checkpoint_of(sandbox)
    forge(folder / "manifest.json", lambda facts: facts.update({field: value}))
    if "PYTHON" in json.dumps(value):
        forge(
            folder / "manifest.json",
            lambda facts: facts.update(json.loads(sandbox.fill(json.dumps({field: value})))),
        )
    read_run(folder)


def _pointer(name: str, data: bytes, sandbox: Sandbox) -> None:
    """Leads to a checkpoint of this run, or nowhere."""
    root = checkpoint_of(sandbox).parent
    text = data.decode("latin-1") if len(data) < 100 else ""
    replace(root / name, sandbox.fill(text).encode("latin-1") if text else data)
    for found in (run_folder.best(root), run_folder.last(root), read_run(root.parent).folder):
        assert found is not None and found.parent == root


def _document(data: bytes, sandbox: Sandbox) -> None:
    folder = checkpoint_of(sandbox)
    replace(folder / "manifest.json", data)
    read_run(folder)


def bytes_of(name: str, data: bytes) -> bytes:
    """The file of TENSORS of this name, with its header where HEADERS has one."""
    if name not in HEADERS:
        return data
    header = json.dumps(HEADERS[name]).encode()
    return len(header).to_bytes(8, "little") + header + bytes(8)


def _tensors(name: str, data: bytes, sandbox: Sandbox) -> None:
    folder = checkpoint_of(sandbox)
    path = replace(folder / "model.safetensors", bytes_of(name, data))
    forge(folder / "manifest.json", _with_hash(path))
    read_run(folder)


def _with_hash(path: Path) -> Callable[[dict[str, Any]], object]:
    return lambda facts: facts["files"][path.name].update(sha256=sha256_of(path))


def _weights(name: str, data: bytes, sandbox: Sandbox) -> None:
    (sandbox.folder / "x.safetensors").write_bytes(bytes_of(name, data))
    read_state_dict(sandbox.folder / "x.safetensors")


def _grid(text: str, sandbox: Sandbox) -> None:
    import torch

    save_file({"a": torch.zeros(1)}, sandbox.folder / "x.safetensors", metadata={"grid": sandbox.fill(text)})
    assert getattr(read_state_dict(sandbox.folder / "x.safetensors"), "grid", None) is None


def _chosen(name: str, sandbox: Sandbox) -> None:
    checkpoint_of(sandbox)
    read_run(sandbox.folder / "run", name)
