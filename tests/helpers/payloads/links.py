"""Links, pipes and folders in a stranger's run, in the places that commands write to or read from."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from textpage import page_of

from launch.pictures.html_page import write_html
from launch.saved.run import read_run
from payloads import Payload, Sandbox
from payloads.pickles import checkpoint_of
from pipeline import run_folder
from pipeline.files import folder_within, write_text
from pipeline.train import storage
from pipeline.train.lock import locked
from pipeline.train.reporting import Reporter

STEP = 7
WRITES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "config.json": ("config.json", lambda run: write_text(run / "config.json", "{}")),
    "metrics.jsonl": ("metrics.jsonl", lambda run: _report(run)),
    "damaged metrics": ("metrics.damaged.txt", lambda run: _report(run)),
    "page": ("visualise/x.html", lambda run: _page(run)),
    "pointer latest": ("checkpoints/latest", lambda run: _save(run)),
    "pointer best": (
        "checkpoints/best",
        lambda run: run_folder.point(run / "checkpoints", "best", run / "x"),
    ),
    "half a checkpoint": (f"checkpoints/.partial-step_{STEP:08d}", lambda run: _save(run)),
    "replaced checkpoint": ("checkpoints/.replaced-x", lambda run: _save(run)),
}
"""Place of a link to a file outside -> what writes there; the file outside must stay."""
FOLDERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "checkpoints": ("checkpoints", lambda run: _save(run)),
    "visualise": ("visualise", lambda run: _page(run)),
    "sweep": ("sweep", lambda run: folder_within(run, "sweep")),
    "tensorboard": ("tensorboard", lambda run: _report(run)),
}
"""Place of a link to a folder outside -> what has to refuse it."""
READS = ["manifest.json", "model.safetensors", "ema.safetensors"]


def cases() -> Iterator[Payload]:
    for name, (place, write) in WRITES.items():
        for kind in ("link", "dangling link"):
            yield Payload(f"{name} is a {kind}", partial(_write, kind, place, write), refused=False)
    for name, (place, write) in FOLDERS.items():
        yield Payload(f"{name} is a link", partial(_folder, place, write))
    for kind in ("link", "hard link", "pipe"):
        yield Payload(f"lock is a {kind}", partial(_lock, kind))
    for name in READS:
        for kind in ("pipe", "link to a device", "folder", "link to itself"):
            yield Payload(f"{name} is a {kind}", partial(_read, name, kind))
    yield Payload("step is a link", _step_link)


def _make(kind: str, path: Path, target: Path) -> None:
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "hard link":
        os.link(target, path)
    elif kind == "folder":
        path.mkdir()
    else:
        to = {
            "link": target,
            "dangling link": target.with_name("absent"),
            "link to a device": Path("/dev/zero"),
        }
        path.symlink_to(to.get(kind, path))


def _write(kind: str, place: str, write: Callable[[Path], object], sandbox: Sandbox) -> None:
    run = checkpoint_of(sandbox).parents[1]
    (run / place).parent.mkdir(exist_ok=True)
    _make(kind, run / place, sandbox.precious)
    write(run)
    assert sandbox.precious.read_text() == "precious" and not sandbox.precious.with_name("absent").exists()


def _folder(place: str, write: Callable[[Path], object], sandbox: Sandbox) -> None:
    run = checkpoint_of(sandbox).parents[1]
    shutil.rmtree(run / place, ignore_errors=True)
    (run / place).symlink_to(sandbox.precious.parent)
    write(run)


def _report(run: Path) -> None:
    folder_within(run, "tensorboard")  # a tracker's own refusal would not end the run
    with Reporter(run, main=True, step=1, total_steps=2) as reporter:
        reporter.write(1, {"a": 1.0})


def _page(run: Path) -> None:
    write_html(page_of("x"), folder_within(run, "visualise") / "x.html")


def _save(run: Path) -> None:
    storage.write_checkpoint(run / "checkpoints", STEP, {"model.a": torch.zeros(1)}, {})


def _lock(kind: str, sandbox: Sandbox) -> None:
    _make(kind, sandbox.folder / ".lock", sandbox.precious)
    try:
        locked(sandbox.folder)
    finally:
        assert sandbox.precious.read_text() == "precious"


def _read(name: str, kind: str, sandbox: Sandbox) -> None:
    folder = checkpoint_of(sandbox)
    _make(kind, folder / name, sandbox.precious)
    read_run(folder)


def _step_link(sandbox: Sandbox) -> None:
    folder = checkpoint_of(sandbox)
    for other in folder.parent.iterdir():
        shutil.rmtree(other) if other.is_dir() else other.unlink()
    folder.symlink_to(sandbox.run / "checkpoints" / folder.name)
    assert json.loads((folder / "manifest.json").read_text())
    read_run(folder.parents[1])
