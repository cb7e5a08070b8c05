"""Run by `deepspeed` in every rank: whole runs one after the other, each of a resolved config and of the
checkpoint that it continues."""

import json
import sys
from pathlib import Path

import tasks  # noqa: F401 - fills the registry
from pipeline.config.load import from_plain
from pipeline.train.loop import train


def main(plan: Path) -> None:
    for plain, resume in json.loads(plan.read_text()):
        train(from_plain(plain), resume)


if __name__ == "__main__":
    main(Path(sys.argv[-1]))
