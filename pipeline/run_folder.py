"""The folder of a run: its checkpoints, and the pointers to some of them.

    OUTPUT/checkpoints/step_00000500/   see `train.storage`
    OUTPUT/checkpoints/latest, best     text files that hold the name of a folder

The newest complete checkpoint is always the last one of the run: what a run leaves when it goes back is set
aside at once (`train.branches`). `latest` says the same to other programs, and nothing here follows it.

A run may be a stranger's: a pointer leads to a complete checkpoint beside it, or nowhere. In this file,
`root` is the folder of the checkpoints.
"""

import re
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.files import sync, write_text

_STEP = re.compile(r"step_[0-9]{1,15}")


def folder_name(step: int) -> str:
    return f"step_{step:08d}"


def is_step(folder: Path) -> bool:
    """Whether it has the name of a checkpoint."""
    return _STEP.fullmatch(folder.name) is not None


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))


def checkpoints_of(run: Path) -> Path:
    """The folder of the checkpoints of a run."""
    return run / "checkpoints"


def run_of(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint belongs to; the checkpoint's own where there is no run around
    it."""
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint


def refuse_run(folder: Path) -> None:
    """Raises ConfigError for the folder of a run or of a checkpoint, as a place for other results."""
    if (folder / "checkpoints").exists() or (folder / "manifest.json").exists():
        raise ConfigError(
            f"{folder} is the folder of a run or of a checkpoint, whose files have the same names; give "
            "another"
        )


def complete_folders(root: Path) -> list[Path]:
    """Checkpoints that were renamed into place, the newest first. Their content is not checked; links are
    left out."""
    found = (
        path for path in root.glob("step_*") if is_step(path) and path.is_dir() and not path.is_symlink()
    )
    return sorted(found, key=step_of, reverse=True)


def point(root: Path, name: str, folder: Path) -> None:
    """Writes the name of the folder into the text file `name`, in one step."""
    write_text(root / name, folder.name)
    sync(root)


def pointed(root: Path, name: str) -> Path | None:
    """The folder that the pointer `name` names; None where there is no pointer or no such folder."""
    path = root / name
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        folder = root / file.read(64).decode(errors="replace").strip()
    return folder if folder in complete_folders(root) else None


def last(root: Path) -> Path | None:
    """The newest checkpoint; None where there is none."""
    return next(iter(complete_folders(root)), None)


def best(root: Path) -> Path | None:
    """The checkpoint that `best` names, else the last."""
    return pointed(root, "best") or last(root)
