"""Linear layers in inference on a CPU, with weights in the layout that oneDNN's kernels read.

`F.linear` brings the weight into such a layout in every call. For the few rows of merged tokens that is up to
half of its time; a packed weight saves it, at the price of a second copy of the weights. GELU and the
residual sum run in the same kernel. C channels in, F out.
"""

# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false
# torch has no public door to oneDNN's packed weights; its own compiler takes this one

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook

from pipeline.backbone.frozen_linear import FEWEST_ROWS, FrozenLinear
from pipeline.backbone.packed_weights import drop, packed
from pipeline.kernels.choice import asked

SWITCH = "DTEM_PACKED_WEIGHTS"
"""Environment variable; `0` keeps inference, and frozen layers in training, from packing weights."""
ON_OR_OFF = ("0", "1")


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
    gradients are on, but for frozen layers (`can_freeze`), or the pass is exported, traced or watched. A
    compiled pass calls the operator `dtem::packed_linear`.
    """
    compiling = torch.compiler.is_compiling()
    if not (_packs_in_graph if compiling else can_pack)(layer, x):
        y = FrozenLinear.apply(x, layer.weight, layer.bias) if can_freeze(x, layer) else layer(x)
        return F.gelu(y) if gelu else y if plus is None else plus + y
    assert isinstance(layer, nn.Linear)
    run = torch.ops.dtem.packed_linear if compiling else _packed_linear
    return run(x, layer.weight, layer.bias, plus, gelu, _dtype(x))


def _packed_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, plus: Tensor | None, gelu: bool, dtype: torch.dtype
) -> Tensor:
    return packed((weight,), dtype, lambda: (weight, None)).run(x, bias, gelu=gelu, plus=plus)


torch.library.define(
    "dtem::packed_linear",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor? plus, bool gelu, ScalarType dtype) -> Tensor",
)


@torch.library.impl("dtem::packed_linear", "cpu")
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, plus: Tensor | None, gelu: bool, dtype: torch.dtype
) -> Tensor:
    if not weight.is_inference():
        return _packed_linear(x, weight, bias, plus, gelu, dtype)
    y = F.linear(x.to(dtype), weight.to(dtype), bias if bias is None else bias.to(dtype))
    return F.gelu(y) if gelu else y if plus is None else plus + y


@torch.library.register_fake("dtem::packed_linear")
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, plus: Tensor | None, gelu: bool, dtype: torch.dtype
) -> Tensor:
    y = x.new_empty(*x.shape[:-1], len(weight), dtype=dtype)
    return y if plus is None else plus + y


def linear_beside(layer: nn.Module, x: Tensor, beside: Beside) -> tuple[Tensor, Tensor]:
    """[..., F] and [..., G]: the outputs of a layer that `can_pack` allows, and those of the other."""
    assert isinstance(layer, nn.Linear)
    weight, bias = layer.weight, layer.bias
    sources = (weight,) if bias is None else (weight, bias)

    def joined() -> tuple[Tensor, Tensor]:
        other = beside.layer()
        first = weight.new_zeros(layer.out_features) if bias is None else bias
        return torch.cat([weight, other["weight"]]), torch.cat([first, other["bias"]])

    both = packed((*sources, *beside.sources), _dtype(x), joined, beside.name)
    both = both.run(x, both.bias)
    own, other = both.split_with_sizes((layer.out_features, both.shape[-1] - layer.out_features), dim=-1)
    return own, other


def linear_rows(layer: nn.Module, x: Tensor, rows: slice) -> Tensor:
    """layer(x)[..., rows], x [..., C]: without the work for the rest, where the layer is a plain one."""
    if not torch.compiler.is_compiling() and can_pack(layer, x):
        assert isinstance(layer, nn.Linear)
        weight, bias = layer.weight, layer.bias
        part = packed((weight,), _dtype(x), lambda: (weight[rows], None), f"{rows.start} to {rows.stop}")
        return part.run(x, None if bias is None else bias[rows])
    if _may_be_passed_by(layer):
        return F.linear(x, layer.weight[rows], None if layer.bias is None else layer.bias[rows])
    return layer(x)[..., rows]


def linear_with(layer: nn.Linear, x: Tensor, bias: Tensor, rows: slice | None = None) -> Tensor:
    """layer(x) + bias, or these rows of layer(x), + bias, of a layer without a bias of its own."""
    if _may_be_passed_by(layer):
        return F.linear(x, layer.weight if rows is None else layer.weight[rows], bias)
    return (layer(x) if rows is None else layer(x)[..., rows]) + bias


def _may_be_passed_by(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether its weight may be used without calling it. Hooks may gather it, as those of ZeRO 3 do, also for
    the backward pass."""
    return type(layer) is nn.Linear and bare(layer) and all(map(_is_plain, layer._parameters.values()))


def can_pack(layer: nn.Module, x: Tensor) -> bool:
    """Whether `linear` packs the layer's weight for x. Drops what is packed of it once gradients are on."""
    if torch.is_grad_enabled():
        drop_of(layer)
        return False
    if type(layer) is not nn.Linear:
        return False
    return _counts_versions(layer) and _is_known(layer, x) and _packs(_dtype(x)) and not watched()


def drop_of(*layers: nn.Module) -> None:
    """Forgets what is packed of layers that are about to learn."""
    for layer in layers:
        if type(layer) is nn.Linear:
            drop(layer.weight)


def can_freeze(x: Tensor, *layers: nn.Module) -> bool:
    """Whether gradients are on, but no layer learns, and oneDNN multiplies x by the weights. In bfloat16 it
    always does."""
    return (
        x.device.type == "cpu"
        and in_plain_training()
        and _dtype(x) == torch.float32
        and x.numel() >= FEWEST_ROWS * x.shape[-1]
        and _packs(torch.float32)
        and all(
            type(layer) is nn.Linear and _rests(layer) and _counts_versions(layer) and _is_known(layer, x)
            for layer in layers
        )
    )


def in_plain_training() -> bool:
    """Whether gradients are on, and nothing compiles the pass or follows its operations."""
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and forward_ad._current_level < 0
        and not watched()
    )


def _rests(layer: nn.Linear) -> bool:
    return not any(p is not None and p.requires_grad for p in layer._parameters.values())


def _counts_versions(layer: nn.Linear) -> bool:
    """Inference tensors do not."""
    return not (layer.weight.is_inference() or (layer.bias is not None and layer.bias.is_inference()))


def _packs_in_graph(layer: nn.Module, x: Tensor) -> bool:
    """The same while torch.compile follows the call: by what its graph is then valid for."""
    if torch.is_grad_enabled() or torch.compiler.is_exporting() or type(layer) is not nn.Linear:
        return False
    return _is_known(layer, x) and _packs_constant(_dtype(x))


def _is_known(layer: nn.Linear, x: Tensor) -> bool:
    """Whether the layer does with x what a packed weight does."""
    return (
        x.device.type == "cpu"
        and bare(layer)
        and all(map(_is_plain, layer._parameters.values()))
        and (
            x.dtype == layer.weight.dtype
            or (torch.is_autocast_enabled("cpu") and torch.float64 not in (x.dtype, layer.weight.dtype))
        )
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


def _is_plain(parameter: Tensor | None) -> bool:
    """Not a shard, a quantised weight or the like."""
    return parameter is None or type(parameter) is nn.Parameter


def _dtype(x: Tensor) -> torch.dtype:
    """That in which a layer computes for x."""
    casts = torch.is_autocast_enabled("cpu") and x.dtype != torch.float64
    return torch.get_autocast_dtype("cpu") if casts else x.dtype


def _packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN is wanted, and faster in this dtype, by what was measured (docs/use.md). Raises
    ConfigError for another value of the switch."""
    return torch._C._get_mkldnn_enabled() and asked(SWITCH, ON_OR_OFF) != "0" and dtype in _FASTER


_packs_constant = torch.compiler.assume_constant_result(_packs)


def _faster() -> tuple[torch.dtype, ...]:
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return ()
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return ()
    has_bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return (torch.float32, torch.bfloat16) if has_bfloat16 else (torch.float32,)


_FASTER = _faster()


def watched() -> bool:
    """Whether something follows each operation: counts it, traces it, transforms it."""
    return bool(
        torch._C._len_torch_dispatch_stack()
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None  # pyright: ignore[reportAttributeAccessIssue]
        or _has_any_global_hook()
    )
