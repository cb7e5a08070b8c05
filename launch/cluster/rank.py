"""A process of a launch: `python -P -m launch.cluster.rank ARGUMENTS OF dtem train`. It trains, and ends with
the process that started it.

Under torch's elastic agent it also keeps the agent's rules: nothing starts after a user's mistake or a
request to stop, and a start after the first continues the run.
"""

import os
import signal
import sys
from pathlib import Path
from types import FrameType

from launch import train
from launch.cluster.job import continued
from pipeline.processes import end_at_once, end_with_agent, soon_gone
from pipeline.train.signals import BLOCKED

MARKS = "DTEM_MARKS"
"""Environment variable with the folder of the marks, where an elastic agent may start this process again."""
MISTAKE, STOP = "mistake", "stop"


def main() -> int:
    end_with_agent()
    before = {number: signal.signal(number, _nothing_to_save) for number in BLOCKED}
    try:
        marks = os.environ.get(MARKS)
        return train.main() if marks is None else _again(Path(marks))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _nothing_to_save(number: int, frame: FrameType | None) -> None:
    """A request to stop before training hears it."""
    try:
        print("stopped as asked before the run was built", file=sys.stderr, flush=True)
    finally:
        end_at_once(0)


def _again(marks: Path) -> int:
    """Trains, unless an earlier start ended with a user's mistake, or the run was asked to stop."""
    pid = marks / f"pid-{os.getpid()}"
    pid.touch()
    try:
        if (marks / MISTAKE).exists():
            return 2
        if (marks / STOP).exists():
            return 0
        started = marks / f"started-{os.environ['LOCAL_RANK']}"
        if started.exists():
            sys.argv[1:] = continued(sys.argv[1:])
        started.touch()
        code = train.main()
    finally:
        pid.unlink()
    if code == 2:
        (marks / MISTAKE).touch()
    return code


if __name__ == "__main__":
    sys.exit(soon_gone(main))
