"""A process of a launch: `python -P -m launch.cluster.rank ARGUMENTS OF dtem train`. It trains, and ends with
the process that started it.

Under torch's elastic agent it also keeps the agent's two rules: after a user's mistake nothing starts again,
and a start after the first continues the run.
"""

import os
import sys
from pathlib import Path

from launch import train
from launch.cluster.host_agent import PARENT
from launch.cluster.job import CONTINUE
from launch.cluster.processes import die_with_parent

MARKS = "DTEM_MARKS"
"""Environment variable with the folder of the marks, where an elastic agent may start this process again."""
MISTAKE = "mistake"


def main() -> int:
    if PARENT in os.environ:
        die_with_parent(int(os.environ[PARENT]))
    marks = os.environ.get(MARKS)
    return train.main() if marks is None else _again(Path(marks))


def _again(marks: Path) -> int:
    """Trains, unless an earlier start ended with a user's mistake."""
    if (marks / MISTAKE).exists():
        return 2
    started = marks / f"started-{os.environ['LOCAL_RANK']}"
    if started.exists():
        sys.argv += CONTINUE
    started.touch()
    pid = marks / f"pid-{os.getpid()}"
    pid.touch()
    try:
        code = train.main()
    finally:
        pid.unlink()
    if code == 2:
        (marks / MISTAKE).touch()
    return code


if __name__ == "__main__":
    sys.exit(main())
