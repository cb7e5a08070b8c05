"""What `dtem teach` writes: the adapter with its recipe and curve, and the curve as table, plot and data."""

import tempfile
from pathlib import Path
from typing import Any

from launch.exported.curves import curve_of
from launch.measure.points import Sweep
from launch.report.sweep_files import plain_sweep
from pipeline.backbone.adapters.collect import collect_adapter
from pipeline.backbone.adapters.config import Pixels, Recipe
from pipeline.backbone.adapters.folder import CONFIG, write_folder
from pipeline.backbone.patching.merging_model import MergingModel
from pipeline.backbone.published import Published
from pipeline.errors import ConfigError
from pipeline.run_folder import refuse_run

CURVE = "curve"
"""Folder of the curve in that of the adapter."""
ROOM = 1 << 25
"""Bytes that the adapter of a ViT-L and its curve do not exceed."""


def check_out(folder: Path) -> None:
    """Raises ConfigError for a folder that holds something else than an adapter, and for a run."""
    refuse_run(folder)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {folder} is a file; give a new folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / CONFIG).is_file():
        raise ConfigError(
            f"--out {folder} is not empty and holds no adapter; give a new folder, or that of an adapter to "
            "write anew"
        )


def make_out(folder: Path) -> None:
    """Makes the folder, and fails here, not after the steps, where nothing can be written into it. Raises
    OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"-" * ROOM)
        file.flush()


def write_taught(
    model: MergingModel,
    published: Published,
    folder: Path,
    recipe: dict[str, Any],
    sweep: Sweep | None,
    license: str | None,
) -> None:
    """Writes the adapter of a taught model. sweep: its curve; None while there is none. The curve of an
    earlier adapter in the folder is removed."""
    pixels = published.pixels
    adapter = collect_adapter(
        model,
        base_model=published.base_model,
        pixels=Pixels(
            mean=pixels.mean,
            std=pixels.std,
            interpolation=pixels.interpolation,
            crop_pct=pixels.crop_pct,
            crop_mode=pixels.crop_mode,
        ),
        recipe=Recipe(**recipe),
        curves=[] if sweep is None else [curve_of(plain_sweep(sweep), model.merging.policy.name)],
        license=license,
    )
    write_folder(adapter, folder)
    old = folder / CURVE
    for path in old.glob("sweep*") if not old.is_symlink() else ():
        path.unlink()
