"""How a command ends with an error: a message without a traceback, said once however many ranks have it."""

import os
import sys
import time
import traceback


def told(err: Exception, who: str, *, verbose: bool = False, when_lost: str = "") -> int | None:
    """Prints the message of an error that a user can act on; returns the exit code, or None for any other
    error, of which nothing is printed.

    who: the command. verbose: with the traceback. when_lost: what to do once another process has gone.
    """
    # they import torch, for which --help should not wait
    from pipeline.engine.launched import lost_another
    from pipeline.errors import exit_code, is_users, printable
    from pipeline.redact import without_secrets

    rank = printable(os.environ.get("RANK", "0"))
    who = who if rank == "0" else f"{who}, rank {rank}"
    if lost := lost_another(err):
        print(f"{who}: {lost}{when_lost}", file=sys.stderr, flush=True)
        return 1
    if not is_users(err):
        return None
    if rank != "0":
        _let_rank_0_say(err)
    if verbose:
        print(without_secrets(traceback.format_exc()), file=sys.stderr)
    print(f"{who}: {without_secrets(str(err))}", file=sys.stderr, flush=True)
    return exit_code(err)


def _let_rank_0_say(err: Exception) -> None:
    """Waits while rank 0 may have the same error: the launcher ends this process once that one has ended."""
    from torch import distributed

    from pipeline.engine.launched import TOLD, rank_0_goes_on
    from pipeline.errors import CheckpointError, ConfigError

    if not isinstance(err, CheckpointError | ConfigError):
        return
    if distributed.is_initialized():
        time.sleep(TOLD)
    else:
        rank_0_goes_on()
