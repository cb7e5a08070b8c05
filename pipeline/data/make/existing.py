"""The manifest of shards that exist already, and their indexes.

To index a shard all of it is read, and a remote one is downloaded for it. So what is known of each is noted
in the folder of the manifest, and an indexer that was ended goes on where it was.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from pipeline.data.layouts.picture_files import tell_left_out
from pipeline.data.make.index_notes import IndexNotes, Note
from pipeline.data.make.processes import processes
from pipeline.data.shards.describe import (
    Described,
    Names,
    describe_tar,
    manifest_of,
    missing,
    read_names,
)
from pipeline.data.shards.index import SUFFIX
from pipeline.data.shards.locations import expand, is_remote, local_shards, split
from pipeline.data.shards.manifest import write_manifest
from pipeline.data.shards.storage import file_state
from pipeline.data.shards.stored import refuse_unfinished
from pipeline.errors import ConfigError
from pipeline.files import write_bytes


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
    and for a set that is still being made; ConfigError where another indexer is at work in `out`.
    """
    for folder in {split(tars[0])[0], str(out)}:
        refuse_unfinished(folder)
    named = classes is not None
    names = Names(tuple(classes), tuple(mask_classes)) if named else read_names(split(tars[0])[0])
    out.mkdir(parents=True, exist_ok=True)
    with IndexNotes(out) as notes, processes(workers, "shards indexed") as mapped:
        results = mapped(_index_shard, [(tar, str(out), notes.known.get(tar)) for tar in tars])
        return write_manifest(out, manifest_of(notes.kept(results), names), root)


def _index_shard(task: tuple[str, str, Note | None]) -> tuple[Described, Note]:
    tar, out, note = task
    try:
        state, place = file_state(tar), Path(out, split(tar)[1] + SUFFIX)
    except FileNotFoundError as err:
        raise missing(tar) from err
    if note and (known := note.described(state, place)):
        return known, note
    described, index = describe_tar(tar, hashed=True)
    write_bytes(place, index)
    shard = described.shard
    return described, Note(tar, *state, shard.sha256, shard.index_sha256, described.num_classes)
