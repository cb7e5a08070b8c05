"""Which of several ways to compute the same is taken on a GPU: the one that was fastest there.

The ways are compared when a class of shapes is first met, on its own tensors: each has to give what the first
one gives (`close`), and the fastest one is kept for the process. A way that fails is left out with a warning.
An environment variable names one way instead (docs/speed.md).
"""

import logging
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from importlib import util

import torch
from torch import Tensor

from pipeline.errors import ConfigError

AUTO = "auto"
KERNELS = ("eager", "triton")
"""Values of DTEM_KERNELS, beside AUTO."""
ROUNDS, RUNS = 3, 10
LEAST = 1e-5
"""Of the norm; gradients of attention in float32 differ by up to 12 roundings between sound ways."""
HAS_TRITON = util.find_spec("triton") is not None
"""It comes with the CUDA builds of torch."""
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton's interpreter runs kernels on a CPU: slowly, for tests."""

Results = tuple[Tensor, ...]
Way = Callable[[], Results]
Same = Callable[[Results, Results], bool]

_log = logging.getLogger(__name__)
_fastest: dict[Hashable, str] = {}


def asked(variable: str, names: Sequence[str]) -> str:
    """The value of an environment variable, `auto` where it is not set. Raises ConfigError for another than
    `auto` and the names."""
    value = os.environ.get(variable) or AUTO
    if value not in (AUTO, *names):
        raise ConfigError(f"{variable} is '{value}'; give one of {', '.join((AUTO, *names))}")
    return value


def takes_triton(*tensors: Tensor) -> bool:
    """Whether kernels of Triton can read these tensors here. An exported program has PyTorch's operators
    alone, as it runs where this package is not."""
    if not HAS_TRITON or torch.compiler.is_exporting():
        return False
    return all(
        (x.is_cuda or INTERPRETED)
        and type(x) is Tensor
        and x.numel() > 0
        and x.dtype in (torch.float32, torch.bfloat16, torch.float16)
        for x in tensors
    )


def is_measured(x: Tensor) -> bool:
    """Whether ways are compared on this tensor's device: not where PyTorch fuses its operators itself, nor
    where results have to repeat, as clocks differ from process to process."""
    compiling, repeats = torch.compiler.is_compiling(), torch.are_deterministic_algorithms_enabled()
    return x.is_cuda and not (compiling or repeats)


def by_kernel(
    eager: Way, kernel: Way, tensors: Sequence[Tensor], key: Sequence[Hashable], same: Same
) -> Results:
    """What both ways compute. DTEM_KERNELS=auto: by the faster one, or by the operators of PyTorch where
    nothing is measured. tensors: those that a kernel reads; key: see `fastest`."""
    if not tensors[0].is_cuda and not INTERPRETED:
        return eager()
    way = asked("DTEM_KERNELS", KERNELS)
    if way == "eager" or not takes_triton(*tensors):
        return eager()
    if way == AUTO:
        ways = {"eager": eager, "triton": kernel}
        measured = is_measured(tensors[0])
        way = fastest((*key, *classes(*tensors)), ways, same, tensors[0]) if measured else "eager"
    return kernel() if way == "triton" else eager()


def classes(*tensors: Tensor) -> tuple[Hashable, ...]:
    """What speed depends on: device, dtypes and shapes, where batch and tokens [B, M, ...] count by their
    `magnitude`."""
    shapes = ((magnitude(x.shape[0]), magnitude(x.shape[1]), *x.shape[2:]) for x in tensors)
    return (tensors[0].device, *(x.dtype for x in tensors), *shapes)


def magnitude(count: int) -> int:
    """The exponent of the next power of two."""
    return (count - 1).bit_length()


def close(ours: Results, theirs: Results, *, most: float | None = None, dim: int | None = None) -> bool:
    """Whether results are the same but for rounding: by norm, as each way adds up in another order.

    most: distance as a part of the norm; None: 8 roundings of the dtype, or LEAST where these are less. dim:
    one norm for each place of the other dims; None: one for all.
    """
    return all(_is_close(*pair, most, dim) for pair in zip(ours, theirs, strict=True))


def _is_close(ours: Tensor, theirs: Tensor, most: float | None, dim: int | None) -> bool:
    part = max(8 * torch.finfo(ours.dtype).eps, LEAST) if most is None else most
    off = torch.linalg.vector_norm(ours.float() - theirs.float(), dim=dim)
    return bool((off <= part * torch.linalg.vector_norm(theirs.float(), dim=dim)).all())


def fastest(key: Hashable, ways: Mapping[str, Way], same: Same, on: Tensor) -> str:
    """Name of the fastest of the ways; the first one while a CUDA graph is captured and nothing is known.

    key: what the answer depends on. same: whether the results of another way are those of the first one.
    on: a tensor on the device that is measured, be it the current one or not.
    """
    if key not in _fastest:
        with torch.cuda.device_of(on):
            first, *others = ways
            if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
                return first
            wanted = ways[first]()
            sound = [first, *(name for name in others if _works(name, ways[name], wanted, same))]
            _fastest[key] = first if len(sound) == 1 else _quickest({name: ways[name] for name in sound})
    return _fastest[key]


def _works(name: str, way: Way, wanted: Results, same: Same) -> bool:
    try:
        if same(way(), wanted):
            return True
        _log.warning("%s gives another result than PyTorch's operators here, so it is not used", name)
    except Exception as err:  # what compilers of kernels raise has no common class
        _log.warning("%s cannot be used here (%s: %s)", name, type(err).__name__, err)
    return False


def _quickest(ways: Mapping[str, Way]) -> str:
    """By the least time of a few rounds, in turns."""
    times = dict.fromkeys(ways, float("inf"))
    for _ in range(ROUNDS):
        for name, way in ways.items():
            times[name] = min(times[name], _milliseconds(way))
    return min(times, key=times.__getitem__)


def _milliseconds(way: Way) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    way()
    begin.record()
    for _ in range(RUNS):
        way()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)
