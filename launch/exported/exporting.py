"""Writing of an export into its folder: as a whole or not at all."""

import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.files import sync


@contextmanager
def exporting(path: Path, cards: Sequence[str]) -> Iterator[Path]:
    """A path of the same name to write to, in a folder of its own. At the end that and what was written
    beside it take their places, and what was said of an earlier export, by the names `cards`, is gone. After
    an error all is as it was, also where the folder of `path` was not there.
    """
    folder = path.parent
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    stage = folder / f".partial-{secrets.token_hex(4)}"
    stage.mkdir(parents=True)
    try:
        yield stage / path.name
        written = sorted(stage.iterdir(), reverse=True)  # the data of a model before what names them
        for file in written:
            sync(file)
        for name in (*cards, f"{path.name}.data") if (folder / cards[-1]).exists() else ():
            (folder / name).unlink(missing_ok=True)  # .data: where ONNX keeps the weights of large models
        for file in written:
            file.rename(folder / file.name)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        with suppress(OSError):  # what is not empty stays
            for place in new:
                place.rmdir()
