"""Rank, number of processes and device of this process, read from the launcher's environment."""

import os
import re
import time
from datetime import timedelta
from typing import Any

import torch

from pipeline.errors import ConfigError, printable

LARGEST_PORT = 65535
_BROKE_OFF = re.compile(r"gloo/transport/\S+ (?P<gloo>[^\n]+)|(?P<nccl>ncclRemoteError[^\n]*)")
PATIENCE = timedelta(seconds=60)
"""Longest wait for rank 0 to open the rendezvous, before another rank reports its own mistake."""
TOLD = 10.0
"""Seconds in which rank 0 says what every rank would say, and the launcher ends the others."""


def _number(name: str, default: int, most: int = 10**6) -> int:
    value = os.environ.get(name, str(default))
    if not (value.isascii() and value.isdigit() and len(value) < 10 and int(value) <= most):
        way_out = f"a launcher sets it to a number up to {most}, otherwise unset it"
        raise ConfigError(f"environment variable {name} is '{value}'; {way_out}")
    return int(value)


def world_size() -> int:
    return max(1, _number("WORLD_SIZE", 1))


def rank() -> int:
    """Rank of this process. Raises ConfigError where rank, number of processes or port are wrong."""
    own, size = _number("RANK", 0), world_size()
    if own >= size:
        raise ConfigError(
            f"environment variable RANK is {own}, but WORLD_SIZE is "
            f"{os.environ.get('WORLD_SIZE', 'not set')}; a launcher sets both, otherwise unset both"
        )
    _number("MASTER_PORT", 0, LARGEST_PORT)
    return own


def local_rank() -> int:
    """Rank among this machine's processes. Raises ConfigError where it has fewer GPUs than processes."""
    own = _number("LOCAL_RANK", 0)
    if cuda() and own >= (gpus := torch.cuda.device_count()):
        raise ConfigError(
            f"environment variable LOCAL_RANK is {own}, but {gpus} GPUs are seen; start {gpus} "
            "processes on this machine"
        )
    return own


def started_again() -> bool:
    """Whether the launcher or scheduler says that it has started this job before."""
    return any(_number(name, 0) > 0 for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))


def agents_store() -> bool:
    """Whether torchrun's agent opens the store in which the processes meet."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def device() -> torch.device:
    """Device of this process. Raises ConfigError where this machine has fewer GPUs than processes."""
    return torch.device("cuda", local_rank()) if cuda() else torch.device("cpu")


def rank_0_goes_on() -> bool:
    """Whether rank 0 opens the rendezvous within PATIENCE, for which this waits; False where no launcher
    named the place.

    A launcher ends all processes when one ends: where rank 0 stops with a message, this process ends during
    the wait. torchrun's agent opens the rendezvous before rank 0 is there, so then this waits for a while.
    """
    if agents_store():
        time.sleep(TOLD)
        return True
    try:
        address, port = os.environ["MASTER_ADDR"], _number("MASTER_PORT", 0, LARGEST_PORT)
        distributed: Any = torch.distributed
        distributed.TCPStore(address, port, is_master=False, timeout=PATIENCE, wait_for_workers=False)
    except (KeyError, ConfigError, RuntimeError, ValueError):
        return False
    return True


def lost_another(err: BaseException) -> str:
    """Message for an exchange with other processes that broke off; empty for any other error, and for a
    single process.

    Only NCCL's errors of the remote side count. Gloo's begin with a line of its source, which is left out.
    """
    match = _BROKE_OFF.search(str(err)) if isinstance(err, RuntimeError) and world_size() > 1 else None
    if match is None:
        return ""
    reason = printable((match["gloo"] or match["nccl"]).strip())
    return (
        f"another of the {world_size()} processes has ended or does not answer ({reason}); what it "
        "says, or who killed it, is the cause"
    )


def cuda() -> bool:
    """Whether GPUs are used: there are some, and DS_ACCELERATOR is not `cpu`. DeepSpeed reads that variable
    too; its launcher shows GPUs again that CUDA_VISIBLE_DEVICES hides."""
    return torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"
