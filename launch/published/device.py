"""The device and precision of a command on a published model."""

import torch

from pipeline.engine import launched
from pipeline.errors import ConfigError


def device_and_precision(device: str | None, precision: str | None) -> tuple[torch.device, str]:
    """The asked ones; None: a GPU where there is one, under bf16, else the CPU under fp32. Raises ConfigError
    for a device that is not there."""
    try:
        found = launched.device() if device is None else torch.device(device)
    except RuntimeError as err:
        raise ConfigError(f"--device {device} is none of torch's; give cuda, cuda:1 or cpu") from err
    if found.type not in ("cpu", "cuda") or (found.type == "cuda" and not torch.cuda.is_available()):
        raise ConfigError(f"--device {device} is not there; give cpu, or leave it out")
    return found, precision or ("bf16" if found.type == "cuda" else "fp32")
