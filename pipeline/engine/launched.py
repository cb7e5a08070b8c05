"""Who this process is among the processes of the run, as the launcher's environment says."""

import os
import re
from datetime import timedelta
from typing import Any

import torch

from pipeline.errors import ConfigError, printable

LARGEST_PORT = 65535
_BROKE_OFF = re.compile(r"gloo/transport/\S+ (?P<gloo>[^\n]+)|(?P<nccl>ncclRemoteError[^\n]*)")
PATIENCE = timedelta(seconds=60)
"""For rank 0 to open the rendezvous, before another one says what it found wrong."""


def _number(name: str, default: int, most: int = 10**6) -> int:
    value = os.environ.get(name, str(default))
    if not (value.isascii() and value.isdigit() and len(value) < 10 and int(value) <= most):
        way_out = f"a launcher sets it to a number up to {most}, otherwise unset it"
        raise ConfigError(f"environment variable {name} is '{value}'; {way_out}")
    return int(value)


def world_size() -> int:
    return max(1, _number("WORLD_SIZE", 1))


def rank() -> int:
    """Raises ConfigError where rank, size and port are no place among processes."""
    own, size = _number("RANK", 0), world_size()
    if own >= size:
        raise ConfigError(
            f"environment variable RANK is {own}, but WORLD_SIZE is "
            f"{os.environ.get('WORLD_SIZE', 'not set')}; "
            "a launcher sets both, otherwise unset both"
        )
    _number("MASTER_PORT", 0, LARGEST_PORT)
    return own


def local_rank() -> int:
    """Raises ConfigError where this machine has fewer GPUs than processes."""
    own = _number("LOCAL_RANK", 0)
    if cuda() and own >= (gpus := torch.cuda.device_count()):
        raise ConfigError(
            f"environment variable LOCAL_RANK is {own}, but {gpus} GPUs are seen; start {gpus} "
            "processes on this machine"
        )
    return own


def device() -> torch.device:
    """This process's own. Raises ConfigError where this machine has fewer GPUs than processes."""
    return torch.device("cuda", local_rank()) if cuda() else torch.device("cpu")


def rank_0_goes_on() -> bool:
    """Waits for rank 0 to open the rendezvous; False where it does not for a minute, or no launcher said
    where. Connects to nothing else.

    A launcher ends all processes when one ends: where rank 0 stops with a message, this one is ended
    meanwhile.
    """
    try:
        address, port = os.environ["MASTER_ADDR"], _number("MASTER_PORT", 0, LARGEST_PORT)
        store: Any = torch.distributed
        store.TCPStore(address, port, is_master=False, timeout=PATIENCE, wait_for_workers=False)
    except (KeyError, ConfigError, RuntimeError, ValueError):
        return False
    return True


def lost_another(err: BaseException) -> str:
    """A message for where an exchange with the other processes broke off; empty for any other error, and
    where there are no others.

    Of NCCL only what it takes for the other side's fault. The whole text of gloo's names a line of its source
    first.
    """
    said = _BROKE_OFF.search(str(err)) if isinstance(err, RuntimeError) and world_size() > 1 else None
    if said is None:
        return ""
    reason = printable((said["gloo"] or said["nccl"]).strip())
    return (
        f"another of the {world_size()} processes has ended or does not answer ({reason}); what it "
        "says, or who killed it, is the cause"
    )


def cuda() -> bool:
    """Whether GPUs are used: there are some, and DS_ACCELERATOR, which DeepSpeed obeys too, does not say
    `cpu`. (Its launcher makes GPUs visible again that CUDA_VISIBLE_DEVICES hides.)"""
    return torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"
