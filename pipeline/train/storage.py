"""One checkpoint on disk: a folder that is there as a whole or not at all.

    step_00000500/ model.safetensors optimizer.safetensors ema.safetensors rng.safetensors manifest.json
    latest, best    text files that hold a folder's name

Tensors are filed by the first part of their name (`model.backbone.pos_embed` is `backbone.pos_embed` in model.safetensors). The
manifest has the sha256 of every file and everything that is not a tensor. Nothing in a checkpoint can run code.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.errors import CheckpointError

FORMAT = 1
FILE_OF = {"model": "model", "exp_avg": "optimizer", "exp_avg_sq": "optimizer", "step": "optimizer", "ema": "ema", "rng": "rng"}
PLAIN = {"model", "ema", "rng"}
"""Files of one prefix only, which is left out inside."""
MAX_MANIFEST = 1 << 26


@dataclass(frozen=True)
class Checkpoint:
    """tensors: by prefixed name, on the CPU. facts: all that is not a tensor."""

    folder: Path
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def folder_name(step: int) -> str:
    return f"step_{step:08d}"


def write_checkpoint(root: Path, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Path:
    """Writes into a temporary folder, syncs it to the disk, renames it, and then moves the pointer. Raises OSError."""
    root.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(root)
    folder, partial = root / folder_name(step), root / f".partial-{folder_name(step)}"
    partial.mkdir()
    files = {}
    for name, content in _by_file(tensors).items():
        save_file(content, partial / name)
        files[name] = {"sha256": sha256(partial / name), "bytes": (partial / name).stat().st_size}
    manifest = {"format": FORMAT, "step": step, "files": files, **facts}
    text = json.dumps(manifest | {"sha256": _sha256_of_facts(manifest)}, indent=1, allow_nan=False)
    (partial / "manifest.json").write_text(text)
    for path in (*partial.iterdir(), partial):
        _sync(path)
    if folder.exists():
        folder.rename(root / f".replaced-{folder_name(step)}")
    partial.rename(folder)
    _sync(root)
    point(root, "latest", folder)
    return folder


def read_checkpoint(folder: Path) -> Checkpoint:
    """A complete checkpoint; raises CheckpointError that says what is wrong with it."""
    facts = read_manifest(folder)
    tensors: dict[str, Tensor] = {}
    for name, expected in facts["files"].items():
        prefix = "" if (kind := name.removesuffix(".safetensors")) not in PLAIN else f"{kind}."
        try:
            if sha256(folder / name) != expected["sha256"]:
                raise CheckpointError(f"{folder / name} is damaged: its sha256 is not the manifest's")
            tensors |= {prefix + key: tensor for key, tensor in load_file(folder / name).items()}
        except (OSError, SafetensorError) as err:
            raise CheckpointError(f"{folder / name} cannot be read: {err}") from err
    return Checkpoint(folder, tensors, facts)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Raises CheckpointError where it is missing, damaged, or names files that a checkpoint does not have."""
    path = folder / "manifest.json"
    try:
        if path.stat().st_size > MAX_MANIFEST:
            raise CheckpointError(f"{path} has {path.stat().st_size} bytes; a manifest has at most {MAX_MANIFEST}")
        facts = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(facts, dict) or facts.pop("sha256", None) != _sha256_of_facts(facts):
            raise CheckpointError(f"{path} is damaged: its sha256 is not that of its content")
    except (OSError, ValueError, RecursionError) as err:
        raise CheckpointError(f"{folder} is not a complete checkpoint: {err}") from err
    known = {f"{name}.safetensors" for name in FILE_OF.values()}
    if facts.get("format") != FORMAT or not isinstance(facts.get("files"), dict):
        raise CheckpointError(f"{path} is not a manifest of format {FORMAT}")
    if strange := facts["files"].keys() - known:
        raise CheckpointError(f"{path} names the file {min(strange)!r}; a checkpoint has {', '.join(sorted(known))}")
    if not all(isinstance(entry, dict) and isinstance(entry.get("sha256"), str) for entry in facts["files"].values()):
        raise CheckpointError(f"{path} lacks the sha256 of a file")
    return facts


def complete_folders(root: Path) -> list[Path]:
    """Folders that were renamed into place, newest first; their content is not checked."""
    return sorted((path for path in root.glob("step_*") if path.is_dir()), reverse=True)


def point(root: Path, name: str, folder: Path) -> None:
    """Makes the text file `name` hold the folder's name, at once."""
    partial = root / f".partial-{name}"
    partial.write_text(folder.name)
    _sync(partial)
    partial.rename(root / name)
    _sync(root)


def pointed(root: Path, name: str) -> Path | None:
    """The folder that a pointer names, or None where there is no pointer or no such folder."""
    path = root / name
    folder = root / path.read_text()[:64].strip() if path.is_file() else None
    return folder if folder in complete_folders(root) else None


def prune(root: Path, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints and the best one."""
    best = pointed(root, "best")
    for folder in complete_folders(root)[max(1, keep) :]:
        if folder != best:
            folder.rename(root / f".replaced-{folder.name}")
    _remove_leftovers(root)


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def _sha256_of_facts(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _by_file(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    files: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        prefix, _, rest = name.partition(".")
        file = FILE_OF[prefix]
        files.setdefault(f"{file}.safetensors", {})[rest if file in PLAIN else name] = tensor.contiguous()
    return files


def _remove_leftovers(root: Path) -> None:
    """What an interrupted save or removal left; no reader ever looks at it."""
    for pattern in (".partial-*", ".replaced-*"):
        for path in root.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
