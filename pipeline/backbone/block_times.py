"""Measures on the device of a model in which blocks a merge pays. B images of H x W pixels."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from pipeline.backbone.block import MergingBlock
from pipeline.errors import ConfigError, counted
from pipeline.merging.paying import BlockTimes, paying_schedule

ROUNDS = 5
_TOO_LARGE = ("DefaultCPUAllocator", "Overflow", "overflow")
Clock = Callable[[], float]
Run = Callable[[Sequence[int]], object]
"""A forward pass of inference under r of each block."""


@torch.no_grad()
def paying_blocks(
    blocks: Sequence[MergingBlock], run: Run, wished: Sequence[int], num_tokens: int, *, clock: Clock
) -> list[int]:
    """r of each block: the wished one, or 0 where the merge takes longer than it saves there and later.

    run: a forward pass of the images that it is measured on. num_tokens: those that enter the first block.
    clock: seconds, once the device has done all that it was asked for.
    """
    if not any(wished):
        return list(wished)
    return paying_schedule(wished, block_times(blocks, run, wished, clock), num_tokens)


def block_times(blocks: Sequence[MergingBlock], run: Run, wished: Sequence[int], clock: Clock) -> BlockTimes:
    """Each block's median over rounds, in which all take turns, after one that does not count: with and
    without its merge, at its length under the wished schedule and unmerged."""
    calls: dict[tuple[int, bool, bool], Callable[[], object]] = {}
    lengths: dict[tuple[int, bool], int] = {}
    for shorter, schedule in ((True, wished), (False, [0] * len(blocks))):
        for number, ((state, _, place), options) in enumerate(_inputs(blocks, run, schedule)):
            lengths[number, shorter] = state.tokens.shape[1]
            for r in {0, wished[number]}:
                calls[number, shorter, r > 0] = partial(blocks[number], state, r, place, **options)
    seconds: dict[tuple[int, bool, bool], list[float]] = {key: [] for key in calls}
    for turn in range(ROUNDS + 1):
        for key, call in calls.items():
            start = clock()
            call()
            if turn > 0:
                seconds[key].append(clock() - start)
    samples = {True: [], False: []}
    for (number, shorter, merges), each in seconds.items():
        samples[merges].append((lengths[number, shorter], median(each)))
    whole = median(median(each) for (_, shorter, merges), each in seconds.items() if not (shorter or merges))
    return BlockTimes(samples[False], samples[True], whole)


def _inputs(
    blocks: Sequence[MergingBlock], run: Run, schedule: Sequence[int]
) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Arguments of each block in a forward pass."""
    found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    with _told(blocks, lambda args, options: found.append((args, options))):
        run(schedule)
    return found


@contextmanager
def _told(blocks: Sequence[MergingBlock], tell: Callable[[Any, Any], None]) -> Iterator[None]:
    hooks = [
        block.register_forward_pre_hook(lambda _, args, options: tell(args, options), with_kwargs=True)
        for block in blocks
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def clock_of(device: torch.device) -> Clock:
    """Seconds, once the device has done all that it was asked for."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    return now


@contextmanager
def within_memory(batch: int, size: tuple[int, int], device: torch.device) -> Iterator[None]:
    """A context that raises ConfigError where images do not fit into memory, of the device or of the host."""
    try:
        yield
    except (RuntimeError, TypeError) as err:
        if not _lacks_memory(err):
            raise
        raise ConfigError(
            f"{counted(batch, 'image')} of {size[0]}x{size[1]} pixels at once do not fit into the memory of "
            f"{device}, or of its host; give fewer"
        ) from err


def _lacks_memory(err: Exception) -> bool:
    """The host's allocator has no error of its own, nor has a size that no address reaches."""
    return isinstance(err, torch.OutOfMemoryError) or any(text in str(err) for text in _TOO_LARGE)


def random_images(batch: int, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """[B, 3, H, W], for the shape [3, H, W] of one, or clips, with the device and dtype of `like`; always the
    same."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, *shape, generator=generator).to(like)
