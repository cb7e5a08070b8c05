"""torch's elastic agent (`torchrun`) for one host: `python -P -m launch.cluster.elastic OPTIONS`.

It is `torch.distributed.run` with four differences. A user's mistake (status 2) is not tried again, though
the agent counts it as any failure. The agent's own status is that of the process that failed first. A request
to stop goes to the ranks, which save and leave, and does not end the agent, which would kill them after 30 s;
it holds for ranks that start later. And the ranks of each start meet in a store of their own: the agent keeps
its own store from start to start, where they would find the addresses of ranks that are gone.
"""

import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from launch.cluster.rank import MARKS, MISTAKE, STOP
from launch.cluster.work import ASK, PREEMPTIONS
from pipeline.processes import PARENT, end_with_agent


def main(options: Sequence[str]) -> int:
    """0, or the status of the first process that failed, as a shell counts it."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    end_with_agent()
    with tempfile.TemporaryDirectory(prefix="dtem-ranks-") as folder:
        marks = Path(folder)
        os.environ |= {MARKS: folder, PARENT: str(os.getpid()), "PYTHONSAFEPATH": "1"}
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        for number in PREEMPTIONS:
            signal.signal(number, lambda *_: _stop(marks))
        try:
            # SIGQUIT alone stays with the agent
            torchrun(["--signals-to-handle", "SIGQUIT", *options])
        except ChildFailedError as err:
            if (marks / MISTAKE).exists():
                return 2
            code = err.get_first_failure()[1].exitcode
            return 128 - code if code < 0 else code
    return 0


def _stop(marks: Path) -> None:
    """Asks the ranks to stop. Where none is, as others are waited for or start again, it ends the agent."""
    (marks / STOP).touch()
    ranks = list(_ranks(marks))
    for rank in ranks:
        rank.send_signal(ASK)
    if not ranks:
        raise SystemExit(2 if (marks / MISTAKE).exists() else 0)


def _ranks(marks: Path) -> Iterator[psutil.Process]:
    """Those that have left their pids, and none whose pid another process has got since."""
    for path in marks.glob("pid-*"):
        try:
            process = psutil.Process(int(path.name.removeprefix("pid-")))
            if process.ppid() == os.getpid():
                yield process
        except psutil.NoSuchProcess:
            continue


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
