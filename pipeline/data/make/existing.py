"""The manifest of shards that exist already."""

import os
from pathlib import Path

from pipeline.data.make.picture_files import tell_left_out
from pipeline.data.make.write import index_shards
from pipeline.data.shards.index import SUFFIX
from pipeline.data.shards.locations import expand, is_remote, local_shards, split
from pipeline.errors import ConfigError


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
            [
                path
                for path in Path(folder).iterdir()
                if path.suffix not in (".tar", ".json", SUFFIX) and path.name[0] != "."
            ]
        )
    if out is None and (is_remote(folder) or not os.access(folder, os.W_OK)):
        raise ConfigError(
            f"{folder} cannot be written to: give OUT, a folder for the manifest, which is then the "
            "source to train from"
        )
    root, made = folder if is_remote(folder) else os.path.realpath(folder), Path(out or folder)
    return index_shards(tars, made, root=None if root == str(made.resolve()) else root, workers=workers)
