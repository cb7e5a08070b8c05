"""Randomness by address: the same address gives the same numbers, in any process and at any time."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import numpy as np
import torch
from torch import Tensor


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


@contextmanager
def preserved_generators() -> Iterator[None]:
    """Restores the CPU generators at the end: without workers they are those of the training process."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


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


def rng_state() -> Tensor:
    """The global generators of this process as one int64 tensor: torch, Python, NumPy, and CUDA's where there
    is one."""
    _, key, position, has_gauss, gauss = cast(tuple[str, np.ndarray, int, int, float], np.random.get_state())
    version, words, python_gauss = random.getstate()
    parts = [
        torch.get_rng_state().long(),
        torch.tensor([version, *words], dtype=torch.int64),
        _bits(python_gauss),
        torch.from_numpy(key.astype(np.int64)),
        torch.tensor([position, has_gauss]),
        _bits(gauss),
    ]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_rng_state().long())
    return torch.cat(parts)


def set_rng_state(state: Tensor) -> None:
    """The inverse of `rng_state`; CUDA's part is left out where either side has no CUDA."""
    torch_size, python_size = torch.get_rng_state().numel(), len(random.getstate()[1]) + 1
    sizes = [torch_size, python_size, 2, 624, 2, 2]
    rest = state[sum(sizes) :]
    torch_state, python_state, python_gauss, key, position, gauss = state[: sum(sizes)].split(sizes)
    torch.set_rng_state(torch_state.to(torch.uint8))
    version, *words = python_state.tolist()
    random.setstate((version, tuple(words), _float(python_gauss)))
    np.random.set_state(
        ("MT19937", key.numpy().astype(np.uint32), int(position[0]), int(position[1]), _float(gauss) or 0.0)
    )
    if rest.numel() and torch.cuda.is_available():
        torch.cuda.set_rng_state(rest.to(torch.uint8))


def _bits(value: float | None) -> Tensor:
    """[2] int64: whether there is a value, and its bits."""
    return torch.stack(
        [
            torch.tensor(int(value is not None)),
            torch.tensor(value or 0.0, dtype=torch.float64).view(torch.int64),
        ]
    )


def _float(bits: Tensor) -> float | None:
    return float(bits[1].view(torch.float64)) if bits[0] else None
