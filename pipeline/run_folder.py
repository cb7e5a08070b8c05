"""Where a run keeps its checkpoints, and which of them its pointers name.

    OUTPUT/checkpoints/step_00000500/   see `train.storage`
    OUTPUT/checkpoints/latest, best     text files that hold a folder's name

A run may be a stranger's: a pointer leads to a complete checkpoint beside it, or nowhere.
"""

import re
from pathlib import Path

from pipeline.files import sync, write_text

_STEP = re.compile(r"step_[0-9]{1,15}")


def folder_name(step: int) -> str:
    return f"step_{step:08d}"


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))


def checkpoints_of(run: Path) -> Path:
    """The folder of a run's checkpoints; all others of this file are given it as `root`."""
    return run / "checkpoints"


def run_of(checkpoint: Path) -> Path:
    """The run's folder; the checkpoint's own where it lies alone."""
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint


def complete_folders(root: Path) -> list[Path]:
    """Checkpoints that were renamed into place, newest first; their content is not checked. Links are none of
    ours."""
    found = (
        path
        for path in root.glob("step_*")
        if _STEP.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
    )
    return sorted(found, key=step_of, reverse=True)


def point(root: Path, name: str, folder: Path) -> None:
    """Makes the text file `name` hold the folder's name, at once."""
    write_text(root / name, folder.name)
    sync(root)


def pointed(root: Path, name: str) -> Path | None:
    """The folder that a pointer names, or None where there is no pointer or no such folder."""
    path = root / name
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        folder = root / file.read(64).decode(errors="replace").strip()
    return folder if folder in complete_folders(root) else None


def last(root: Path) -> Path | None:
    """What `latest` names, else the newest; None where there is none."""
    return pointed(root, "latest") or next(iter(complete_folders(root)), None)


def best(root: Path) -> Path | None:
    """What `best` names, else the last."""
    return pointed(root, "best") or last(root)
