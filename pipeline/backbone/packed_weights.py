"""Copies of weights in the layout that oneDNN's kernels read, made anew where a weight changed. C channels
in, F out."""

# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false
# torch has no public door to oneDNN's packed weights; its own compiler takes this one

from collections.abc import Callable
from weakref import ref

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

PROBES = 16
"""Number of a weight's values that are compared with those that were packed, in each call."""


class Source:
    """A parameter that was packed, as it was."""

    def __init__(self, parameter: Tensor):
        self._parameter, self._address, self._version = (
            ref(parameter),
            parameter.data_ptr(),
            parameter._version,
        )
        # a view of the memory, which therefore stays: no other weight comes to lie at its address
        self._view = parameter.detach().flatten()[:: _stride(parameter)]
        self._values = self._view.clone()

    def is_still(self, parameter: Tensor) -> bool:
        """Whether it is this parameter, unchanged. Writes through `.data` count no version, so some values
        are compared as well."""
        return (
            parameter is self._parameter()
            and parameter.data_ptr() == self._address
            and parameter._version == self._version
            and torch.equal(self._view, self._values)
        )


class Packed:
    """A weight [F, C] in oneDNN's layout, the bias [F] where it was made with it, and their sources."""

    def __init__(self, sources: list[Source], weight: Tensor, bias: Tensor | None, dtype: torch.dtype):
        self.dtype, self._sources = dtype, sources
        self.weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype))
        self.bias = None if bias is None else bias.to(dtype)

    def fits(self, sources: tuple[Tensor, ...], dtype: torch.dtype) -> bool:
        """Whether the sources are still those, unchanged."""
        return (
            self.dtype == dtype
            and len(sources) == len(self._sources)
            and all(map(Source.is_still, self._sources, sources))
        )

    def run(
        self, x: Tensor, bias: Tensor | None, *, gelu: bool = False, plus: Tensor | None = None
    ) -> Tensor:
        """x [..., C] times the weight, plus a bias [F] -> [..., F], in the dtype of both; then its GELU, or
        its sum with plus [..., F]."""
        x, ops = _as(x, self.dtype), torch.ops.mkldnn._linear_pointwise
        bias = bias if bias is None else _as(bias, self.dtype)
        if gelu:
            return ops.default(x, self.weight, bias, "gelu", [], "none")
        if plus is not None and plus.dtype == self.dtype and plus.is_contiguous():
            return ops.binary(x, plus, self.weight, bias, "add")
        y = ops.default(x, self.weight, bias, "none", [], "")
        return y if plus is None else plus + y


_PACKED: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""Of each weight, by the name of what is computed beside it. No module has them, so that no state dict, copy
or pickle holds them."""


def packed(
    sources: tuple[Tensor, ...],
    dtype: torch.dtype,
    layer: Callable[[], tuple[Tensor, Tensor | None]],
    name: str = "",
) -> Packed:
    """The packed weight that is made of the sources by `layer`: as it was made before, where they did not
    change. The first source is the weight that has it; name: tells apart what is made of the same weight."""
    known: dict[str, Packed] | None = _PACKED.get(sources[0])
    if known is None:
        known = _PACKED[sources[0]] = {}
    found = known.get(name)
    if found is None or not found.fits(sources, dtype):
        noted = [Source(source) for source in sources]  # first: a write in between then counts as one
        found = known[name] = Packed(noted, *layer(), dtype)
    return found


def drop(weight: Tensor) -> None:
    """Forgets what is packed of a weight, which is about to learn."""
    if _PACKED:
        _PACKED.pop(weight, None)


def _as(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in a dtype. Asking first takes a fifth of the time of a conversion that changes nothing."""
    return x if x.dtype == dtype else x.to(dtype)


def _stride(source: Tensor) -> int:
    """From one value to the next: a sixteenth of all, and of a row further, so that they lie in as many rows
    and columns."""
    columns = source.shape[-1] if source.ndim > 1 else 0
    return (source.numel() // PROBES + columns // PROBES) | 1
