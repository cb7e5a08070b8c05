"""torch's elastic agent (`torchrun`) for one host: `python -P -m launch.cluster.elastic OPTIONS`.

It is `torch.distributed.run` with three differences. A user's mistake (status 2) is not tried again, though
the agent counts it as any failure. The agent's own status is that of the process that failed first. A signal
goes to the ranks, which save and leave, and does not end the agent, which would kill them after 30 s.
"""

import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import psutil

from launch.cluster.host_agent import PARENT, PASSED_ON
from launch.cluster.processes import die_with_parent
from launch.cluster.rank import MARKS, MISTAKE


def main(options: Sequence[str]) -> int:
    """0, or the status of the first process that failed, as a shell counts it."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    if PARENT in os.environ:
        die_with_parent(int(os.environ[PARENT]))
    with tempfile.TemporaryDirectory(prefix="dtem-ranks-") as folder:
        marks = Path(folder)
        os.environ |= {MARKS: folder, PARENT: str(os.getpid()), "PYTHONSAFEPATH": "1"}
        for number in PASSED_ON:
            signal.signal(number, lambda number, frame: _pass_on(marks, number, frame))
        try:
            # SIGQUIT alone stays with the agent
            torchrun(["--signals-to-handle", "SIGQUIT", *options])
        except ChildFailedError as err:
            if (marks / MISTAKE).exists():
                return 2
            code = err.get_first_failure()[1].exitcode
            return 128 - code if code < 0 else code
    return 0


def _pass_on(marks: Path, number: int, frame: FrameType | None) -> None:
    """To the ranks, which have left their pids, and to none whose pid another process has got since."""
    for path in marks.glob("pid-*"):
        try:
            process = psutil.Process(int(path.name.removeprefix("pid-")))
            if process.ppid() == os.getpid():
                process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
