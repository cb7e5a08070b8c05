"""Checkpoints on disk: each a folder that is there as a whole or not at all.

    step_00000500/        manifest.json, {model,optimizer,ema,samples}.safetensors
    .partial-, .replaced- what is being written or removed, which no reader looks at

The first part of a tensor's name says its file (`model.backbone.pos_embed` is `backbone.pos_embed` in
model.safetensors). The manifest has the sha256 of every file, and everything that is not a tensor. Nothing in
a checkpoint can run code.
"""

import hashlib
import json
import logging
import secrets
import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline.errors import CheckpointError
from pipeline.files import folder_within, sha256_of, sync, write_text
from pipeline.run_folder import complete_folders, folder_name, is_step, step_of
from pipeline.train.facts import check_facts
from pipeline.train.tensor_file import write_tensors

log = logging.getLogger(__name__)

FORMAT = 1
PLAIN = {"model", "ema", "samples"}
"""Files whose tensors all have one prefix, which is left out in them."""
KINDS = frozenset({*PLAIN, "optimizer"})
"""The files of a checkpoint, without `.safetensors`. All prefixes but the plain ones are the optimizer's."""
OLD = {"rng.safetensors"}
"""Files of older checkpoints, which are not read: a step seeds the generators by its number."""
MAX_MANIFEST = 1 << 26


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was opened."""

    folder: Path
    tensors: dict[str, Tensor]
    """Prefixed name -> tensor on the CPU. They are mapped: of a file, only what is used is read."""
    facts: dict[str, Any]
    """Everything that is not a tensor."""


def write_checkpoint(root: Path, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Path:
    """Writes into a temporary folder, syncs it to the disk and renames it. Returns the checkpoint's folder.
    Raises OSError, PipelineError.

    A folder of that step is replaced; it is that of a save which failed behind the rename.
    """
    make_root(root)
    remove_leftovers(root)
    folder, partial = root / folder_name(step), hidden(root, "partial", folder_name(step))
    partial.mkdir()
    files = {}
    for name, content in _by_file(tensors).items():
        files[name] = write_tensors(partial / name, content)
    finish(partial, {"format": FORMAT, "step": step, "files": files, **facts})
    if folder.exists():
        folder.rename(hidden(root, "replaced", folder.name))
    partial.rename(folder)
    sync(root)
    return folder


def make_root(root: Path) -> None:
    """Makes the folder of a run's checkpoints, whose name is then on the disk. Raises ConfigError if it is a
    link."""
    there = root.is_dir()
    folder_within(root.parent, root.name)
    if there:
        return
    sync(root.parent)
    # it may be a folder that this account cannot list
    with suppress(PermissionError):
        sync(root.parent.parent)


def hidden(root: Path, kind: str, name: str) -> Path:
    """A new place that no reader looks at, beside leftovers that cannot be removed."""
    return root / f".{kind}-{name}-{secrets.token_hex(4)}"


def finish(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Writes the manifest, behind all other files of a checkpoint, and waits until it is on the disk."""
    (folder / "manifest.json").write_text(_manifest_text(manifest))
    for path in (folder / "manifest.json", folder):
        sync(path)


def restate(folder: Path, facts: Mapping[str, Any]) -> None:
    """Writes facts of a checkpoint anew. Raises OSError, CheckpointError."""
    write_text(folder / "manifest.json", _manifest_text({**read_manifest(folder), **facts}))
    sync(folder)


def read_checkpoint(folder: Path, kinds: Collection[str] = KINDS) -> Checkpoint:
    """The checkpoint in a folder, with the tensors of some of its files, whose content is compared with the
    manifest. Raises CheckpointError where it is incomplete or damaged."""
    facts = read_manifest(folder)
    for name in files_of(facts, kinds):
        check_file(folder, facts, name)
    return open_checkpoint(folder, facts, kinds)


def files_of(facts: Mapping[str, Any], kinds: Collection[str] = KINDS) -> list[str]:
    """Names of the files of these kinds, the largest first."""
    names = [name for name in facts["files"] if name.removesuffix(".safetensors") in kinds]
    return sorted(names, key=lambda name: -facts["files"][name].get("bytes", 0))


def check_file(folder: Path, facts: Mapping[str, Any], name: str) -> None:
    """Reads a whole file. Raises CheckpointError where its content is not what the manifest says."""
    try:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name} is not there, or is no regular file")
        if sha256_of(folder / name) != facts["files"][name]["sha256"]:
            raise CheckpointError(f"{folder / name} is damaged: its sha256 is not the manifest's")
    except OSError as err:
        raise CheckpointError(f"{folder / name} cannot be read: {err}") from err


def open_checkpoint(folder: Path, facts: dict[str, Any], kinds: Collection[str] = KINDS) -> Checkpoint:
    """The checkpoint, of which no tensor is read yet. Raises CheckpointError where a file is no file of
    tensors."""
    tensors: dict[str, Tensor] = {}
    for name in files_of(facts, kinds):
        prefix = f"{kind}." if (kind := name.removesuffix(".safetensors")) in PLAIN else ""
        try:
            tensors |= {prefix + key: tensor for key, tensor in load_file(folder / name).items()}
        except (OSError, SafetensorError) as err:
            raise CheckpointError(f"{folder / name} cannot be read: {err}") from err
    return Checkpoint(folder, tensors, facts)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The facts of the checkpoint in a folder. Raises CheckpointError where the manifest is missing or
    damaged, names files that a checkpoint does not have, or has a fact of another type."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} is not a complete checkpoint: it has no manifest.json")
    try:
        if path.stat().st_size > MAX_MANIFEST:
            raise CheckpointError(
                f"{path} has {path.stat().st_size} bytes; a manifest has at most {MAX_MANIFEST}"
            )
        facts = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(facts, dict) and "shards" in facts:
            raise CheckpointError(
                f"{folder} is a folder of shards, not of a run; give the `output` of a `dtem train`"
            )
        if not isinstance(facts, dict) or facts.pop("sha256", None) != _sha256_of_facts(facts):
            raise CheckpointError(f"{path} is damaged: its sha256 is not that of its content")
    except (OSError, ValueError, RecursionError) as err:
        raise CheckpointError(f"{folder} is not a complete checkpoint: {err}") from err
    known = {f"{name}.safetensors" for name in KINDS}
    if facts.get("format") != FORMAT or not isinstance(facts.get("files"), dict):
        raise CheckpointError(f"{path} is not a manifest of format {FORMAT}")
    if strange := facts["files"].keys() - known - OLD:
        raise CheckpointError(
            f"{path} names the file {min(strange)!r}; a checkpoint has {', '.join(sorted(known))}"
        )
    if not all(
        isinstance(entry, dict)
        and isinstance(entry.get("sha256"), str)
        and type(entry.get("bytes", 0)) is int
        for entry in facts["files"].values()
    ):
        raise CheckpointError(f"{path} lacks the sha256 of a file, or has a size that is no number")
    check_facts(path, facts, needed=("step",))
    if is_step(folder) and step_of(folder) != facts["step"]:
        raise CheckpointError(
            f"{path} is of step {facts['step']}, not of that in its folder's name; give the folder its name "
            f"{folder_name(facts['step'])} back"
        )
    return facts


def prune(root: Path, keep: int, stay: Collection[Path]) -> None:
    """Removes all checkpoints but the newest `keep`, and those that stay. One that cannot be removed, such as
    one that a reader has open on NFS, is said and left."""
    for folder in complete_folders(root)[keep:]:
        if folder not in stay:
            try:
                folder.rename(hidden(root, "replaced", folder.name))
            except OSError as err:
                log.warning("the older checkpoint %s is not removed: %s", folder, err)
    remove_leftovers(root)


def _manifest_text(manifest: Mapping[str, Any]) -> str:
    return json.dumps({**manifest, "sha256": _sha256_of_facts(manifest)}, indent=1, allow_nan=False)


def _sha256_of_facts(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _by_file(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    files: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        prefix, _, rest = name.partition(".")
        file = prefix if prefix in PLAIN else "optimizer"
        files.setdefault(f"{file}.safetensors", {})[rest if file in PLAIN else name] = tensor.contiguous()
    return files


def remove_leftovers(root: Path) -> None:
    """Removes the files of an interrupted save or removal, as far as that is possible."""
    for path in root.glob(".*-*"):
        if path.name.startswith((".partial-", ".replaced-", ".fetched-")):
            try:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            except OSError as err:
                log.warning("%s, which nothing reads, is not removed yet: %s", path, err)
