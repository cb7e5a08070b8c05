"""Randomness by address: the same address gives the same numbers, in any process and at any time."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
    # torch.manual_seed would set the GPU's too
    torch.default_generator.manual_seed(seed)


def generator_states() -> tuple[Any, ...]:
    """Where the CPU generators of Python, NumPy and torch are, for `set_generators`."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def set_generators(states: tuple[Any, ...]) -> None:
    """Sets the CPU generators to where they were."""
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


@contextmanager
def preserved_generators() -> Iterator[None]:
    """Restores the CPU generators at the end: without workers they are those of the training process."""
    states = generator_states()
    try:
        yield
    finally:
        set_generators(states)


def generator(*address: int | str) -> torch.Generator:
    """A CPU generator for this address, for instance `generator(seed, "augment", epoch, key)`."""
    return torch.Generator().manual_seed(seed_of(*address))


def uniform(*address: int | str) -> float:
    """A number in [0, 1) that is drawn for this address, with 53 random bits."""
    return float(torch.rand((), generator=generator(*address), dtype=torch.float64))


def seed_everything(*address: int | str) -> None:
    """Sets the global generators of the CPU and the GPU, from which starting weights, dropout and drop path
    are drawn."""
    seed_generators(*address)
    torch.cuda.manual_seed(seed_of(*address))
