"""Writes the two pictures of the README anew, from what `make demo` left in runs/.

    make demo && .venv/bin/python docs/demo_pictures.py

The first is the page of `dtem visualise` on four samples, the second the chart of `dtem sweep`.
"""

import subprocess
import sys
from pathlib import Path

from PIL import Image

RUN = Path("runs/digits_multitask_dtem")
IMAGES = Path(__file__).parent / "images"
SAMPLES, WIDTH = "4", 1400


def main() -> None:
    """Raises CalledProcessError where the run is not there."""
    shown = ["--num", SAMPLES, "--blocks", "1,2,4"]
    subprocess.run([sys.executable, "-m", "dtem", "visualise", str(RUN), *shown], check=True)
    _write(RUN / "visualise/tasks_dtem.png", IMAGES / "demo_tasks.webp", quality=85)
    _write(RUN / "sweep/sweep.png", IMAGES / "demo_sweep.png", optimize=True)


def _write(source: Path, target: Path, **options: object) -> None:
    """The picture, no wider than a page shows it."""
    with Image.open(source) as found:
        picture = found.convert("RGB")
    if picture.width > WIDTH:
        height = round(picture.height * WIDTH / picture.width)
        picture = picture.resize((WIDTH, height), Image.Resampling.LANCZOS)
    picture.save(target, **options)


if __name__ == "__main__":
    main()
