"""How much commands log to the terminal."""

import logging
import os


def start_logs(*, verbose: bool) -> None:
    """With `verbose`, shows what all parts have to say, on every rank. Without, each command decides."""
    if verbose:
        rank = os.environ.get("RANK", "0")
        who = "" if rank == "0" else f"rank {rank}: "
        logging.basicConfig(level=logging.INFO, format=f"%(levelname)s {who}%(name)s: %(message)s")
