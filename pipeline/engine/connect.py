"""Connects the processes of a run. Every wait has a deadline, and a signal is heeded during it."""

import atexit
import os
import socket
import time
from datetime import timedelta
from threading import Thread
from typing import Any

import torch
from torch import distributed
from torch.distributed import distributed_c10d
from torch.distributed.rendezvous import rendezvous

from pipeline.engine import launched
from pipeline.engine.attempts import own_attempt
from pipeline.errors import ConnectError, printable
from pipeline.ranks import HOSTS, connect_hosts

START = 300.0
"""Seconds for all processes to come, where no configuration says otherwise."""
ALONE = 1800.0
"""Longest time in seconds that a rank works alone while the others wait: it saves, or computes scores."""
_PAUSE = 0.5
_AGENT = 15.0
"""Longest time in seconds to reach the store of torchrun's agent, which is there before its ranks."""
_store: list[Any] = []


def connect(limit: float = START) -> None:
    """Connects the processes that the launcher's environment names, if it names several and they are not yet
    connected: over NCCL on GPUs, else gloo, and the hosts over gloo besides (`Ranks.hosts`).

    limit: seconds for all of them to come, and for each collective until `limit_collectives`. Raises
    ConfigError for an environment that makes no sense, and ConnectError.
    """
    rank, size, device = launched.rank(), launched.world_size(), own_device()
    if size == 1 or distributed.is_initialized():
        return
    end = time.monotonic() + limit
    place = _master(rank, end, limit)
    store = _meet(place, rank, end, limit)
    backend, bound = ("nccl", device) if device.type == "cuda" else ("gloo", None)
    try:
        left = timedelta(seconds=max(1.0, end - time.monotonic()))
        distributed.init_process_group(
            backend, store=store, rank=rank, world_size=size, timeout=left, device_id=bound
        )
        atexit.register(_disconnect)
        connect_hosts(timedelta(seconds=max(1.0, end - time.monotonic())))
    except (RuntimeError, ValueError) as err:
        raise ConnectError(
            f"rank {rank} found the other processes at {place} and could not connect to them "
            f"({_line(err)}); where a host has several networks, or its name means 127.0.*, set "
            f"{'NCCL' if bound else 'GLOO'}_SOCKET_IFNAME to the interface that all hosts reach"
        ) from err
    _store[:] = [store]
    limit_collectives(limit)


def own_device() -> torch.device:
    """The device of this process, and the current one from now on. Called before any tensor is on a GPU, or
    else every process takes memory of the first one. Raises ConfigError as `launched.device`."""
    device = launched.device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def limit_collectives(seconds: float) -> None:
    """Sets the longest wait in a collective, of every group but that of the hosts, which is ALONE."""
    if not distributed.is_initialized():
        return
    # DeepSpeed makes groups of its own, without a timeout
    for group in distributed_c10d._world.pg_map:
        own = ALONE if group.group_desc == HOSTS else seconds
        distributed_c10d._set_pg_timeout(timedelta(seconds=own), group)


def shared_notes() -> Any:
    """A connection of its own to the store that all ranks share, for another thread; None for a process that
    is alone."""
    return _store[0].clone() if _store else None


def _master(rank: int, end: float, limit: float) -> str:
    """Waits until the place where the processes meet can be reached, or for rank 0, which opens it, until its
    name is known. Returns `address:port`."""
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    place = printable(f"{address}:{port}")
    agents = launched.agents_store()
    opened = rank > 0 or agents
    last = min(end, time.monotonic() + _AGENT) if agents else end
    while True:
        try:
            if not opened:
                socket.getaddrinfo(address, int(port))
            else:
                left = max(0.1, end - time.monotonic())
                socket.create_connection((address, int(port)), timeout=left).close()
            return place
        except (OSError, ValueError) as err:
            if time.monotonic() + _PAUSE > last:
                raise _not_met(place, rank, min(limit, _AGENT) if agents else limit, err) from err
        time.sleep(_PAUSE)


def _meet(place: str, rank: int, end: float, limit: float) -> Any:
    """The store that all processes share. A thread waits for them, as a signal's handler runs only while the
    main thread is in Python."""
    stores: list[Any] = []
    errors: list[Exception] = []

    def wait() -> None:
        try:
            left = timedelta(seconds=max(1.0, end - time.monotonic()))
            store = next(iter(rendezvous("env://", timeout=left)))[0]
            if launched.agents_store():
                store = own_attempt(store, rank, launched.world_size(), end - time.monotonic())
            stores.append(store)
        except Exception as err:  # noqa: BLE001 - raised in the main thread
            errors.append(err)

    thread = Thread(target=wait, name="rendezvous", daemon=True)
    thread.start()
    while thread.is_alive() and time.monotonic() < end + 2:
        thread.join(0.1)
    if not stores:
        reason = errors[0] if errors else TimeoutError("no answer")
        raise _not_met(place, rank, limit, reason) from reason
    return stores[0]


def _not_met(place: str, rank: int, limit: float, err: Exception) -> ConnectError:
    return ConnectError(
        f"rank {rank} did not meet the other {launched.world_size() - 1} processes at {place} within "
        f"{limit:.0f} s ({_line(err)}); see that MASTER_ADDR and MASTER_PORT name the host of rank 0, that "
        "every rank was started and that no firewall is between them. Where hosts start late, raise "
        "engine.start_timeout"
    )


def _line(err: Exception) -> str:
    return printable((getattr(err, "strerror", None) or str(err)).strip().split("\n")[0])


def _disconnect() -> None:
    _store.clear()
    if distributed.is_initialized():
        distributed.destroy_process_group()
