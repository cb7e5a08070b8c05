"""Which of several ways to compute the same is taken on a GPU: the one that was fastest there.

The ways are compared when a class of shapes is first met, on its own tensors: each has to give what the first
one gives, and the fastest one is kept for the process. A way that fails is left out with a warning. An
environment variable names one way instead (docs/speed.md).
"""

import logging
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from importlib import util

import torch
from torch import Tensor

from pipeline.errors import ConfigError

AUTO = "auto"
ROUNDS, RUNS = 3, 10
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


def by_kernel(
    eager: Way, kernel: Way, tensors: Sequence[Tensor], key: Sequence[Hashable], same: Same
) -> Results:
    """What both ways compute. DTEM_KERNELS=auto: by the faster one; under torch.compile by the operators of
    PyTorch, which it fuses itself. tensors: those that a kernel reads; key: see `fastest`."""
    if not tensors[0].is_cuda and not INTERPRETED:
        return eager()
    way = asked("DTEM_KERNELS", ("eager", "triton"))
    if way == "eager" or not takes_triton(*tensors):
        return eager()
    if way == AUTO:
        measured = tensors[0].is_cuda and not torch.compiler.is_compiling()
        way = (
            fastest((*key, *classes(*tensors)), {"eager": eager, "triton": kernel}, same) if measured else ""
        )
    return kernel() if way == "triton" else eager()


def classes(*tensors: Tensor) -> tuple[Hashable, ...]:
    """What speed depends on: device, dtypes and shapes, where batch and tokens [B, M, ...] count by the next
    power of two."""
    shapes = (((x.shape[0] - 1).bit_length(), (x.shape[1] - 1).bit_length(), *x.shape[2:]) for x in tensors)
    return (tensors[0].device, *(x.dtype for x in tensors), *shapes)


def fastest(key: Hashable, ways: Mapping[str, Way], same: Same) -> str:
    """Name of the fastest of the ways; the first one while a CUDA graph is captured and nothing is known.

    key: what the answer depends on. same: whether the results of another way are those of the first one.
    """
    if key not in _fastest:
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
