"""The branch that a run is on: what it goes on from is made its newest checkpoint before its first step, so
that a restart goes on from there too.

    aside-step_00000600/  of a branch that was left, or damaged; neither read nor removed

A run that a user starts with `--resume PATH` writes PATH into the `origins` of its checkpoints, and what goes
on from these inherits them. So the same command, given again, goes on from the newest checkpoint that the run
has written since. `root` is the folder of the checkpoints.
"""

import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import CheckpointError
from pipeline.files import sync
from pipeline.ranks import Ranks
from pipeline.redact import redacted
from pipeline.run_folder import complete_folders, folder_name, is_step, pointed, step_of
from pipeline.train import storage
from pipeline.train.checkpoint import load_latest, load_mirror, load_path
from pipeline.train.collective import agreed
from pipeline.train.mirror import Mirror, mirror_at
from pipeline.train.saving import move_pointers
from pipeline.train.storage import Checkpoint

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """What a run goes on from."""

    found: Checkpoint
    origins: tuple[str, ...]
    """The paths from which the user has started this run, and the runs that it goes on from."""
    foreign: bool
    """Whether it is of another output, so that no checkpoint of this one comes before it."""
    mirror: Mirror | None
    """What may hold others of its run."""
    place: str
    """What it is called for the user."""


def choose(ranks: Ranks, root: Path, resume: str, mirror: Mirror | None) -> Choice | None:
    """The checkpoint to go on from; None where the run begins at step 0. A collective. Raises
    CheckpointError.

    resume: `auto` and `extend` are the last one; `none` is none; else a path or URL, which is followed until
    this run has a checkpoint that goes back to it, and the newest of these from then on.
    """
    if resume == "none":
        return None
    origin = None if resume in ("auto", "extend") else origin_of(resume)
    found = load_latest(ranks, root, mirror, origin)
    if found is not None:
        place = str(found.folder) if mirror is None or is_step(found.folder) else mirror.url
        place += f", saved since it went on from {origin}" if origin else ""
        return Choice(found, tuple(found.facts.get("origins", ())), False, mirror, place)
    if origin is None:
        return None
    if "://" in resume:
        copies = mirror_at(resume)
        return Choice(load_mirror(ranks, copies, root), (origin,), True, copies, origin)
    found = load_path(ranks, Path(resume))
    foreign = found.folder.parent.resolve() != root.resolve()
    before = () if foreign else found.facts.get("origins", ())
    return Choice(found, (*before, origin), foreign, None, str(found.folder))


def origin_of(resume: str) -> str:
    """The name of a path or URL that is the same in every start."""
    return redacted(resume) if "://" in resume else str(Path(resume).resolve())


def make_lasting(ranks: Ranks, root: Path, choice: Choice) -> tuple[Path, int | None]:
    """Makes the choice the newest checkpoint under `root`, and sets aside what is of another branch. Returns
    its folder, and the step of the best checkpoint that is there; None for none. A collective. Raises
    CheckpointError."""

    def work() -> list[Any]:
        folder = _placed(root, choice)
        facts = choice.found.facts
        best = facts["progress"].get("best_step") or _step(pointed(root, "best"))
        if best is not None and not (root / folder_name(best)).is_dir():
            best = best if _fetched(root, best, choice.mirror) else None
        move_pointers(root, folder, best)
        storage.remove_leftovers(root)
        return [str(folder), best]

    folder, best = agreed(ranks, work)
    return Path(folder), best


def _placed(root: Path, choice: Choice) -> Path:
    """The folder of the choice, which is under `root` now, and the newest there."""
    there, step = choice.found.folder, choice.found.facts["step"]
    folder = root / folder_name(step)
    if not folder.is_dir() or there.resolve() != folder.resolve():
        ready = _copy(there, root, choice)
        if folder.is_dir():
            _set_aside(folder, step)
        ready.rename(folder)
        sync(root)
    for other in reversed(complete_folders(root)):
        if step_of(other) > step or (choice.foreign and other != folder):
            _set_aside(other, step)
    return folder


def _copy(there: Path, root: Path, choice: Choice) -> Path:
    """A hidden copy in `root`, of links where they can be: files of a checkpoint are never written to."""
    if there.parent == root:
        storage.restate(there, {"origins": list(choice.origins)})
        return there
    storage.make_root(root)
    partial = storage.hidden(root, "partial", there.name)
    partial.mkdir()
    facts = choice.found.facts
    for name in (names := storage.files_of(facts)):
        source, target = (there / name).resolve(), partial / name
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)
            sync(target)
    files = {name: facts["files"][name] for name in names}
    storage.finish(partial, {**facts, "files": files, "origins": list(choice.origins)})
    return partial


def _set_aside(folder: Path, step: int) -> None:
    names = (f"aside-{folder.name}{suffix}" for suffix in ("", *(f"-{i}" for i in range(2, 10_000))))
    place = next(folder.with_name(name) for name in names if not folder.with_name(name).exists())
    folder.rename(place)
    log.warning(
        "%s is not of the branch of step %d, from which the run goes on: it is kept as %s; remove it when it "
        "is not needed",
        folder,
        step,
        place,
    )


def _fetched(root: Path, step: int, mirror: Mirror | None) -> bool:
    """Whether the checkpoint of the step was fetched from the mirror, whole."""
    name = folder_name(step)
    if mirror is None or name not in mirror.names():
        return False
    place = mirror.fetch(name, root)
    try:
        storage.read_checkpoint(place)
    except CheckpointError as err:
        log.warning("the best checkpoint is lost: %s", err)
        return False
    place.rename(root / name)
    sync(root)
    return True


def _step(folder: Path | None) -> int | None:
    return None if folder is None else step_of(folder)
