"""Linear layers in inference on a CPU, with weights in the layout that oneDNN's kernels read.

`F.linear` brings the weight into such a layout in every call. For the few rows of merged tokens that is up to
half of its time; a packed weight saves it, at the price of a second copy of the weights. GELU and the
residual sum run in the same kernel. C channels in, F out.
"""

# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false
# torch has no public door to oneDNN's packed weights; its own compiler takes this one

import os
from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook

SWITCH = "DTEM_PACKED_WEIGHTS"
"""Environment variable; `0` keeps inference from packing weights."""
PROBES = 16
"""Number of a weight's values that are compared with those that were packed, in each call."""


class Source:
    """A parameter that was packed, as it was."""

    def __init__(self, parameter: Tensor):
        self._parameter, self._address, self._version = parameter, parameter.data_ptr(), parameter._version
        # a view of the memory, which therefore stays: no other weight comes to lie at its address
        self._view = parameter.detach().flatten()[:: _stride(parameter)]
        self._values = self._view.clone()

    def is_still(self, parameter: Tensor) -> bool:
        """Whether it is this parameter, unchanged. Writes through `.data` count no version, so some values
        are compared as well."""
        return (
            parameter is self._parameter
            and parameter.data_ptr() == self._address
            and parameter._version == self._version
            and torch.equal(self._view, self._values)
        )


class Packed:
    """A weight in oneDNN's layout, the bias where it was made with it, and what they were made of."""

    def __init__(self, sources: tuple[Tensor, ...], weight: Tensor, bias: Tensor | None, dtype: torch.dtype):
        self.dtype = dtype
        self.weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype))
        self.bias = None if bias is None else bias.to(dtype)
        self._sources = [Source(source) for source in sources]

    def fits(self, sources: tuple[Tensor, ...], dtype: torch.dtype) -> bool:
        """Whether the sources are still those, unchanged."""
        return (
            self.dtype == dtype
            and len(sources) == len(self._sources)
            and all(map(Source.is_still, self._sources, sources))
        )


_PACKED: WeakKeyDictionary[nn.Module, dict[str, Packed]] = WeakKeyDictionary()
"""Of each layer, by the name of what is computed beside it. No module has them, so that no state dict, copy
or pickle holds them."""


@dataclass(frozen=True)
class Beside:
    """Another linear layer of the same input, computed in the same kernel. name: tells it from others;
    sources: what it is made of; layer: its weight [G, C] and bias [G], by these names."""

    name: str
    sources: tuple[Tensor, ...]
    layer: Callable[[], dict[str, Tensor]]


def linear(layer: nn.Module, x: Tensor, *, gelu: bool = False, plus: Tensor | None = None) -> Tensor:
    """layer(x), x [..., C] -> [..., F]; then its GELU, or its sum with plus [..., F].

    What is no plain `nn.Linear` of parameters on a CPU, or has hooks, is called as it is; so are all where
    gradients are on, or the pass is compiled, traced or watched.
    """
    if torch.compiler.is_compiling() or not can_pack(layer, x):
        y = layer(x)
        return F.gelu(y) if gelu else y if plus is None else plus + y
    assert isinstance(layer, nn.Linear)
    weight, bias = layer.weight, layer.bias
    packed = _packed(layer, "", (weight,), lambda: (weight, None), _dtype(x))
    return _run(packed, x, bias if bias is None else _as(bias, packed.dtype), gelu, plus)


def linear_beside(layer: nn.Module, x: Tensor, beside: Beside) -> tuple[Tensor, Tensor]:
    """[..., F] and [..., G]: the outputs of a layer that `can_pack` allows, and those of the other."""
    assert isinstance(layer, nn.Linear)
    weight, bias = layer.weight, layer.bias
    own = (weight,) if bias is None else (weight, bias)

    def joined() -> tuple[Tensor, Tensor]:
        other = beside.layer()
        first = weight.new_zeros(layer.out_features) if bias is None else bias
        return torch.cat([weight, other["weight"]]), torch.cat([first, other["bias"]])

    packed = _packed(layer, beside.name, (*own, *beside.sources), joined, _dtype(x))
    both = _run(packed, x, packed.bias)
    return both.split_with_sizes((layer.out_features, both.shape[-1] - layer.out_features), dim=-1)


def can_pack(layer: nn.Module, x: Tensor) -> bool:
    """Whether `linear` packs the layer's weight for x. Drops what is packed of it once gradients are on."""
    if torch.is_grad_enabled():
        if _PACKED:
            _PACKED.pop(layer, None)
        return False
    return (
        type(layer) is nn.Linear
        and x.device.type == "cpu"
        and bare(layer)
        and all(map(_is_plain, layer._parameters.values()))
        and (x.dtype == layer.weight.dtype or torch.is_autocast_enabled("cpu"))
        and _dtype(x) in _dtypes()
        and not _watched()
    )


def bare(part: nn.Module) -> bool:
    """Whether nobody has hooked the part, or given it a forward of its own."""
    return not (
        part._forward_hooks
        or part._forward_pre_hooks
        or part._backward_hooks
        or part._backward_pre_hooks
        or "forward" in part.__dict__
    )


def _packed(
    layer: nn.Module,
    name: str,
    sources: tuple[Tensor, ...],
    layer_of: Callable[[], tuple[Tensor, Tensor | None]],
    dtype: torch.dtype,
) -> Packed:
    known = _PACKED.setdefault(layer, {})
    packed = known.get(name)
    if packed is None or not packed.fits(sources, dtype):
        packed = known[name] = Packed(sources, *layer_of(), dtype)
    return packed


def _run(
    packed: Packed, x: Tensor, bias: Tensor | None, gelu: bool = False, plus: Tensor | None = None
) -> Tensor:
    x, ops = _as(x, packed.dtype), torch.ops.mkldnn._linear_pointwise
    if gelu:
        return ops.default(x, packed.weight, bias, "gelu", [], "none")
    if plus is not None and plus.dtype == packed.dtype and plus.is_contiguous():
        return ops.binary(x, plus, packed.weight, bias, "add")
    y = ops.default(x, packed.weight, bias, "none", [], "")
    return y if plus is None else plus + y


def _as(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in a dtype. Asking first takes a fifth of the time of a conversion that changes nothing."""
    return x if x.dtype == dtype else x.to(dtype)


def _stride(source: Tensor) -> int:
    """Odd, so that the values lie in all columns."""
    return source.numel() // PROBES | 1


def _is_plain(parameter: Tensor | None) -> bool:
    """Not a shard, a quantised weight or the like; inference tensors count no versions."""
    return parameter is None or (type(parameter) is nn.Parameter and not parameter.is_inference())


def _dtype(x: Tensor) -> torch.dtype:
    """That in which a layer computes for x."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def _dtypes() -> tuple[torch.dtype, ...]:
    """Those in which oneDNN is faster here, by what was measured (docs/use.md)."""
    if not torch._C._get_mkldnn_enabled() or os.environ.get(SWITCH) == "0":
        return ()
    return _FASTER


def _faster() -> tuple[torch.dtype, ...]:
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return ()
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return ()
    has_bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return (torch.float32, torch.bfloat16) if has_bfloat16 else (torch.float32,)


_FASTER = _faster()


def _watched() -> bool:
    """Whether something follows each operation: counts it, traces it, transforms it."""
    return bool(
        torch._C._len_torch_dispatch_stack()
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None  # pyright: ignore[reportAttributeAccessIssue]
        or _has_any_global_hook()
    )
