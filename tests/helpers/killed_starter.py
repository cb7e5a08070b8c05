"""Starts two processes of `multiprocessing` that serve this one, and is killed.

python tests/helpers/killed_starter.py METHOD
"""

import os
import signal
import sys
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection

from pipeline.processes import end_with_starter


def serve(ready: Connection) -> None:
    end_with_starter()
    ready.send("ready")
    time.sleep(300)


if __name__ == "__main__":
    context = get_context(sys.argv[1])
    for _ in range(2):
        here, there = context.Pipe()
        context.Process(target=serve, args=(there,)).start()
        here.recv()
    os.kill(os.getpid(), signal.SIGKILL)
