"""The MLP of a block: through packed weights where it is one that is known, else as it is."""

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn

from pipeline.backbone.classes import label
from pipeline.backbone.frozen_linear import frozen_mlp
from pipeline.backbone.packed_linear import bare, can_freeze, drop_of, linear, watched

LAYERS = dict.fromkeys(
    ("transformers.ViTMLP", "transformers.CLIPMLP", "transformers.Dinov2MLP", "transformers.SiglipMLP"),
    ("fc1", "activation_fn", "fc2"),
) | {
    "timm.Mlp": ("fc1", "act", "fc2"),
    "dinov2.Mlp": ("fc1", "act", "fc2"),
    "dinov3.Mlp": ("fc1", "act", "fc2"),
    "transformers.Siglip2MLP": ("fc1", "activation_fn", "fc2"),
    "transformers.DINOv3ViTMLP": ("up_proj", "act_fn", "down_proj"),
}
"""Class of an MLP -> its first layer, its activation and its last layer. What else it has stands idle in
inference, or it is called as it is."""
IDLE = (nn.Identity, nn.Dropout, DropPath)
"""Classes that pass their input on in evaluation mode."""


def add_mlp(x: Tensor, mlp: nn.Module, read: Tensor, *behind: nn.Module) -> Tensor:
    """x plus what the MLP makes of `read`, after the modules behind it. All [B, M, C]."""
    if idle(*behind):
        return through(mlp, read, x)
    output = through(mlp, read)
    for part in behind:
        output = part(output)
    return x + output


def through(mlp: nn.Module, x: Tensor, plus: Tensor | None = None) -> Tensor:
    """mlp(x), plus `plus`."""
    learns, parts = torch.is_grad_enabled(), _parts(mlp)
    if parts is None or (learns and torch.compiler.is_compiling()):
        return mlp(x) if plus is None else plus + mlp(x)
    first, activation, last = parts
    gelu = type(activation) is nn.GELU and activation.approximate == "none" and bare(activation)
    if learns:
        frozen = gelu and can_freeze(x, first, last)
        output = frozen_mlp(x, *_weights(first), *_weights(last)) if frozen else mlp(x)
        drop_of(first, last)
        return output if plus is None else plus + output
    if gelu:
        return linear(last, linear(first, x, gelu=True), plus=plus)
    return linear(last, activation(linear(first, x)), plus=plus)


def _parts(mlp: nn.Module) -> tuple[nn.Module, nn.Module, nn.Module] | None:
    """First layer, activation and last layer of an MLP that is these alone; None where it is called as it
    is."""
    names = LAYERS.get(label(type(mlp)))
    if names is None or not bare(mlp) or (not torch.compiler.is_compiling() and watched()):
        return None
    first, activation, last = (mlp._modules[name] for name in names)
    assert first is not None and activation is not None and last is not None
    others = [part for name, part in mlp._modules.items() if name not in names and part is not None]
    return (first, activation, last) if idle(*others) else None


def _weights(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    assert isinstance(layer, nn.Linear)
    return layer.weight, layer.bias


def idle(*parts: nn.Module) -> bool:
    """Whether the parts pass their input on as it is, and nobody watches them."""
    return all(
        type(part) in IDLE and (not part.training or type(part) is nn.Identity) and bare(part)
        for part in parts
    )
