"""Reads the manifest that lies in a folder: once in a process, and a remote one once on a machine."""

import hashlib
import json
import os
from functools import lru_cache

from pipeline.data.shards.cache import ShardCache, default_cache
from pipeline.data.shards.columns import from_columns, to_columns
from pipeline.data.shards.locations import is_remote, join, split
from pipeline.data.shards.manifest import MANIFEST, UNFINISHED, Manifest, parse_manifest, remedy
from pipeline.data.shards.storage import FileState, file_state, read_bytes
from pipeline.errors import SampleError


def read_manifest(folder: str, cache: ShardCache | None) -> Manifest | None:
    """The manifest; None where a local folder has none. cache: of remote ones; None: the default one. Raises
    SampleError for a remote folder without a manifest, for one that does not read, and for an unfinished
    set."""
    refuse_unfinished(folder)
    location = join(folder, MANIFEST)
    try:
        state = file_state(location)
        if not state.tag:
            return parse_manifest(read_bytes(location, state=state), folder)
        return _read_once(location, state, (cache or default_cache()) if is_remote(folder) else None)
    except FileNotFoundError:
        if is_remote(folder):
            raise _no_manifest(folder) from None
        return None
    except ValueError as err:
        raise SampleError(f"{location}: {err}; make it anew: {remedy(folder)}") from err


@lru_cache(maxsize=4)
def _read_once(location: str, state: FileState, cache: ShardCache | None) -> Manifest:
    """The manifest in this state. Many ranks of a machine ask for the same remote one, so it comes by way of
    their cache. Raises FileNotFoundError, ValueError and StorageError."""

    def read() -> Manifest:
        return parse_manifest(read_bytes(location, state=state), split(location)[0])

    if cache is None:
        return read()
    key = hashlib.sha256(json.dumps([location, *state]).encode()).hexdigest()
    return cache.kept(f"{key[:32]}.columns", lambda: to_columns(read()), from_columns)


def refuse_unfinished(folder: str) -> None:
    """Raises SampleError for a local folder whose shards are still being made."""
    if not is_remote(folder) and os.path.exists(join(folder, UNFINISHED)):
        raise SampleError(
            f"{folder} holds an unfinished set of shards; start the `dtem shards make` that began it again, "
            "which goes on where it was"
        )


def _no_manifest(folder: str) -> SampleError:
    command = f"dtem shards make index '{folder}/PATTERN.tar' OUT"
    return SampleError(
        f"{folder} has no {MANIFEST}, which remote shards need; `{command}` makes one in OUT, which is "
        "then the source"
    )
