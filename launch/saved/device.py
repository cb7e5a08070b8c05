"""The device and precision of a command, and the time there."""

import time

import torch

from pipeline.engine import launched
from pipeline.errors import ConfigError


def device_and_precision(device: str | None, precision: str | None) -> tuple[torch.device, str]:
    """The asked ones; None: a GPU where there is one, else the CPU; bf16 on a GPU that computes in it, else
    fp32. Raises ConfigError for a device that is not there."""
    try:
        found = launched.device() if device is None else torch.device(device)
    except RuntimeError as err:
        raise ConfigError(f"--device {device} is none of torch's; give cuda, cuda:1 or cpu") from err
    there = torch.cuda.device_count() if found.type == "cuda" else 1
    if found.type not in ("cpu", "cuda") or (found.index or 0) >= there:
        raise ConfigError(f"--device {device} is not there; give cpu, or leave it out")
    fast = found.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return found, precision or ("bf16" if fast else "fp32")


def now(device: torch.device) -> float:
    """Seconds of a clock, once the device has done all that it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
