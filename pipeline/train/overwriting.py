"""`--overwrite`: a run that starts anew in a folder where another one has been.

    OUTPUT/aside-1/   what the other run has written: a run's folder, which can still be evaluated

It is moved when all of the new run is built, under the lock of the folder, and nothing removes it. So a
mistake in the new config, or a run that still trains there, loses nothing.
"""

import logging
from pathlib import Path

from pipeline.engine import launched
from pipeline.files import sync
from pipeline.ranks import Ranks
from pipeline.train.collective import agreed

log = logging.getLogger(__name__)

WRITTEN = (
    *("checkpoints", "config.json", "metrics*", "starts.jsonl", "pictures", "hangs", "injected"),
    *("trackers.json", "tensorboard", "wandb"),
    *("sweep", "visualise", "report.html", "evaluation*.json"),
)
"""What a run writes into its folder, and what commands write there about it; the checkpoints are moved first.
Other files there are not its own."""


def once(resume: str) -> str:
    """`auto` in place of `overwrite` where the launcher starts this run once more: it is the new one now."""
    if resume != "overwrite" or not launched.started_again():
        return resume
    log.warning("--overwrite is for the first start; the launcher has started this run again, so it goes on")
    return "auto"


def set_aside(ranks: Ranks, output: Path) -> list[str]:
    """Moves what a run has written in `output` to a folder there. Returns a line about it, if there was
    anything. A collective. Raises CheckpointError."""

    def work() -> str:
        there = [path for pattern in WRITTEN for path in sorted(output.glob(pattern))]
        if not there:
            return ""
        place = next(
            aside
            for i in range(1, 10_000)
            if not (aside := output / f"aside-{i}").is_symlink() | aside.exists()
        )
        place.mkdir()
        for path in there:
            path.rename(place / path.name)
        sync(place)
        sync(output)
        return str(place)

    place = agreed(ranks, work)
    return (
        [f"starts anew; the run that was here is kept as {place}: remove it when it is not needed"]
        if place
        else []
    )
