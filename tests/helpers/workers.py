"""What tests have data workers do: here, where a process that is not forked finds it."""

import os
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


class Stuck:
    """A fault: who reads first stays there, once its id is in a file."""

    def __init__(self, place: Path):
        self._place = place

    def __call__(self, shard: int, members: dict[str, bytes]) -> dict[str, bytes]:
        try:
            with open(self._place, "x") as file:
                file.write(f"{os.getpid()}\n")
        except FileExistsError:
            return members
        time.sleep(300)
        return members


def tell(lists: Sequence[Sequence[Any]], answer: Connection) -> None:
    """Sends back of which type each list is, and what is in it."""
    answer.send([(type(items).__name__, list(items)) for items in lists])
