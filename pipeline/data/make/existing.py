"""The manifest of shards that exist already, and their indexes.

To index a shard all of it is read, and a remote one is downloaded for it. So what is known of each is noted
in the folder of the manifest, and an indexer that was ended goes on where it was.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from pipeline.data.make.picture_files import tell_left_out
from pipeline.data.make.processes import processes
from pipeline.data.shards.describe import (
    Described,
    Names,
    describe_tar,
    described_by,
    manifest_of,
    read_names,
)
from pipeline.data.shards.index import SUFFIX, ShardIndex
from pipeline.data.shards.locations import expand, is_remote, local_shards, split
from pipeline.data.shards.manifest import write_manifest
from pipeline.data.shards.storage import FileState, file_state
from pipeline.data.shards.stored import refuse_unfinished
from pipeline.errors import ConfigError
from pipeline.files import refuse_link, write_bytes

NOTES = ".indexing.jsonl"
"""What is known of the shards until their manifest is there: a `Note` a line."""


def index_existing(shards: str, out: str | None, *, workers: int) -> Path:
    """Writes the manifest of existing shards, and returns its path. Logs which files of their folder are no
    shards.

    shards: a folder, brace pattern or URL. out: the folder for the manifest; None: that of the shards. Raises
    ConfigError where the shards are in several folders, or `out` is needed and not given.
    """
    tars = [
        tar
        for location in expand(shards)
        for tar in ([location] if location.endswith(".tar") else local_shards(location))
    ]
    folders = {split(tar)[0] for tar in tars}
    if len(folders) != 1:
        raise ConfigError(
            f"{shards} names {len(tars)} shards in {len(folders)} folders; name the shards of one folder"
        )
    folder = folders.pop()
    if not is_remote(folder):
        tell_left_out(
            path
            for path in Path(folder).iterdir()
            if path.suffix not in (".tar", ".json", SUFFIX) and path.name[0] != "."
        )
    if out is None and (is_remote(folder) or not os.access(folder, os.W_OK)):
        raise ConfigError(
            f"{folder} cannot be written to: give OUT, a folder for the manifest, which is then the "
            "source to train from"
        )
    root, made = folder if is_remote(folder) else os.path.realpath(folder), Path(out or folder)
    return index_shards(tars, made, root=None if root == str(made.resolve()) else root, workers=workers)


def index_shards(
    tars: Sequence[str],
    out: Path,
    *,
    root: str | None = None,
    classes: Sequence[str] | None = None,
    mask_classes: Sequence[str] = (),
    workers: int = 1,
) -> Path:
    """Writes the indexes and the manifest of tars into `out`, and returns its path. Remote tars are
    downloaded for it, and not kept.

    root: the folder in which readers find the shards; None: `out`. classes None: the names are those of
    `classes.json` beside the shards (see `read_names`). Raises SampleError for shards that cannot be read,
    and for a set that is still being made.
    """
    for folder in {split(tars[0])[0], str(out)}:
        refuse_unfinished(folder)
    named = classes is not None
    names = Names(tuple(classes), tuple(mask_classes)) if named else read_names(split(tars[0])[0])
    out.mkdir(parents=True, exist_ok=True)
    notes = _notes(out)
    with processes(workers, "shards indexed") as mapped:
        described = mapped(_index_shard, [(tar, str(out), notes.get(tar)) for tar in tars])
        written = write_manifest(out, manifest_of(described, names), root)
    (out / NOTES).unlink(missing_ok=True)
    return written


@dataclass(frozen=True)
class Note:
    """What is known of a shard whose index is written."""

    tar: str
    num_bytes: int
    tag: str
    """Of its state, see `FileState`."""
    sha256: str
    index_sha256: str
    num_classes: int


def _notes(out: Path) -> dict[str, Note]:
    """Maps a tar to its note. A line that was cut off, or is none, is passed over."""
    path, found = out / NOTES, {}
    refuse_link(path)
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            note = Note(*json.loads(line))
        except (ValueError, TypeError, RecursionError):
            continue
        if isinstance(note.tar, str) and isinstance(note.sha256, str) and isinstance(note.num_classes, int):
            found[note.tar] = note
    return found


def _index_shard(task: tuple[str, str, Note | None]) -> Described:
    tar, out, note = task
    state, place = file_state(tar), Path(out, split(tar)[1] + SUFFIX)
    if note and (known := _known(tar, place, state, note)):
        return known
    described, index = describe_tar(tar, hashed=True)
    write_bytes(place, index)
    shard = described.shard
    note = Note(tar, *state, shard.sha256, shard.index_sha256, described.num_classes)
    with open(Path(out, NOTES), "a") as file:  # a short line appears whole, whoever else writes
        file.write(json.dumps(astuple(note)) + "\n")
    return described


def _known(tar: str, place: Path, state: FileState, note: Note) -> Described | None:
    """What the note says, where tar and index are still those that it tells of."""
    if not state.tag or state != (note.num_bytes, note.tag) or not place.is_file():
        return None
    stored = place.read_bytes()
    if hashlib.sha256(stored).hexdigest() != note.index_sha256:
        return None
    return described_by(
        tar, ShardIndex.from_bytes(stored, state.size), state.size, note.sha256, note.num_classes
    )
