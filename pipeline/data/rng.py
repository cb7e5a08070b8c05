"""Randomness by address: what is drawn for a sample depends on its address, not on the worker or the moment
that draws it."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_of(*address: int | str) -> int:
    """A 63-bit seed that depends on every part of the address and on nothing else (stable over processes and
    versions)."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in address)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def seed_generators(*address: int | str) -> None:
    """Sets the CPU generators of Python, NumPy and torch, from which the libraries' augmentations draw."""
    seed = seed_of(*address)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would set the GPU's too


@contextmanager
def preserved_generators() -> Iterator[None]:
    """Puts the CPU generators back as they were: with no workers they are those of the training process."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
