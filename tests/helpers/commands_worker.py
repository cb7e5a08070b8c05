"""Run in each of two ranks: command lines one after the other, in one process. Writes their exit codes."""

import json
import os
import sys
from pathlib import Path

from launch import cli


def main(plan: Path) -> None:
    codes = [cli.main(argv) for argv in json.loads(plan.read_text())]
    plan.with_name(f"codes-{os.environ['RANK']}.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
