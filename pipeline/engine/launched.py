"""Who this process is among the processes of the run, as the launcher's environment says."""

import os

import torch

from pipeline.errors import ConfigError


def _number(name: str, default: int) -> int:
    value = os.environ.get(name, str(default))
    if not value.isdigit():
        raise ConfigError(f"environment variable {name} is '{value}'; a launcher sets it to a number, otherwise unset it")
    return int(value)


def world_size() -> int:
    return max(1, _number("WORLD_SIZE", 1))


def rank() -> int:
    return _number("RANK", 0)


def local_rank() -> int:
    return _number("LOCAL_RANK", 0)


def cuda() -> bool:
    """Whether GPUs are used: there are some, and DS_ACCELERATOR, which DeepSpeed obeys too, does not say `cpu`. (Its launcher makes GPUs
    visible again that CUDA_VISIBLE_DEVICES hides.)"""
    return torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"
