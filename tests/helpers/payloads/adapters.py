"""What a stranger's merge adapter may hold."""

import json
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from payloads import Payload, Sandbox
from payloads.pickles import FORMS, PICKLES
from payloads.runs import DOCUMENTS, TENSORS, bytes_of
from pipeline.backbone.adapters.adapter import Adapter
from pipeline.backbone.adapters.collect import collect_adapter
from pipeline.backbone.adapters.folder import CARD, CONFIG, write_folder
from pipeline.backbone.adapters.folder import TENSORS as FILE
from pipeline.backbone.adapters.public import load_adapter
from pipeline.backbone.build import build_backbone

FIELDS: dict[str, list[Any]] = {
    "format": [0, 2, "1", None, True],
    "base": [None, [], {}, "PYTHON", {"architecture": "PYTHON"}],
    "merging": [
        {"policy": "os.system"},
        {"policy": "PYTHON"},
        {"policy": "dtem", "options": {"split": "PYTHON"}},
        {"policy": "dtem", "options": {"embed_dim": 10**30}},
        {"policy": "dtem", "reduction": "PYTHON"},
    ],
    "curves": [{}, ["PYTHON"], [{"task": "a", "metric": "b", "points": 7}]],
    "made_with": [[], {"a": 1}],
    "_target_": ["os.system"],
}
LINKS = ("/dev/zero", "/dev/stdin", "/etc", "absent")


def cases() -> Iterator[Payload]:
    for field, values in FIELDS.items():
        for value in values:
            yield Payload(f"{field} {value!r:.50}", partial(_field, field, value))
    for data in DOCUMENTS:
        yield Payload(f"configuration {data[:12]!r}", partial(_file, CONFIG, data))
    for name, data in TENSORS.items():
        yield Payload(f"tensors: {name}", partial(_file, FILE, bytes_of(name, data)))
    for name, make in PICKLES.items():
        for form, wrap in FORMS.items():
            run = partial(_pickled, make, wrap)
            yield Payload(f"{name} as tensors, {form}", run)
    for target in LINKS:
        for name in (CONFIG, FILE):
            yield Payload(f"{name} is a link to {target}", partial(_linked, name, target))
    yield Payload("files are written to links", _written, refused=False)


@cache
def _good() -> Adapter:
    sizes = {"depth": 2, "embed_dim": 12, "num_heads": 2}
    return collect_adapter(build_backbone("vit_tiny_patch16_224", policy="dtem", timm_options=sizes))


def _folder(sandbox: Sandbox) -> Path:
    write_folder(_good(), sandbox.folder / "adapter")
    return sandbox.folder / "adapter"


def _field(field: str, value: Any, sandbox: Sandbox) -> None:
    path = _folder(sandbox) / CONFIG
    plain = json.loads(path.read_text()) | {field: value}
    path.write_text(sandbox.fill(json.dumps(plain)))
    load_adapter(path.parent)


def _file(name: str, data: bytes, sandbox: Sandbox) -> None:
    folder = _folder(sandbox)
    (folder / name).write_bytes(data)
    load_adapter(folder)


def _pickled(make: Any, wrap: Any, sandbox: Sandbox) -> None:
    _file(FILE, wrap(make(sandbox)), sandbox)


def _linked(name: str, target: str, sandbox: Sandbox) -> None:
    folder = _folder(sandbox)
    (folder / name).unlink()
    (folder / name).symlink_to(target)
    load_adapter(folder)


def _written(sandbox: Sandbox) -> None:
    folder = sandbox.folder / "adapter"
    folder.mkdir()
    for name in (CONFIG, FILE, CARD):
        (folder / name).symlink_to(sandbox.precious)
    write_folder(_good(), folder)
