"""The adapter of a model whose embeddings were taught."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import timm
import torch
from torch import nn

from pipeline.backbone.adapters.adapter import Adapter
from pipeline.backbone.adapters.config import AdapterConfig, Base, Curve, Merging, Pixels, Recipe
from pipeline.backbone.adapters.digest import base_digest
from pipeline.backbone.adapters.embeddings import (
    architecture_of,
    folded_embeddings,
    merging_blocks,
    pretrained_of,
)
from pipeline.backbone.rotary import RotaryRule
from pipeline.config.reduction_schema import Reduction
from pipeline.errors import ConfigError
from pipeline.merging.policy import MergePolicy
from pipeline.merging.schedule import ReductionSpec, plain_reduction
from pipeline.version import VERSION


def collect_adapter(
    model: nn.Module,
    *,
    task: str | None = None,
    architecture: str | None = None,
    options: dict[str, Any] | None = None,
    base_model: str | None = None,
    reduction: ReductionSpec | None = None,
    pixels: Pixels | None = None,
    recipe: Recipe | None = None,
    curves: Sequence[Curve] = (),
    license: str | None = None,
    made_with: dict[str, str] | None = None,
) -> Adapter:
    """The embeddings of a model, folded for one task, and what is known of them. The model stays as it is.

    task: needed where tasks have parts of their own. architecture, pixels: None takes what timm says of the
    model. reduction: None takes the model's own. made_with: None takes the versions that are installed here.
    The other arguments are the fields of AdapterConfig; base_model is `Base.name`. Raises ConfigError for a
    policy that does not learn.
    """
    blocks, name = merging_blocks(model), architecture_of(model)
    layers = folded_embeddings(blocks, name, task)
    tensors = {
        f"blocks.{number}.metric.{kind}": tensor.detach().cpu().contiguous()
        for number, layer in enumerate(layers)
        for kind, tensor in layer.items()
    }
    policy = _policy_of(blocks[0], name)
    base = Base(
        architecture=architecture or name,
        width=layers[0]["weight"].shape[1],
        depth=len(blocks),
        digest=base_digest(blocks),
        options=options or {},
        name=base_model,
    )
    return Adapter(
        AdapterConfig(
            base=base,
            merging=Merging(
                policy=policy.name,
                options=dict(policy.options),
                reduction=_reduction(model, reduction, len(blocks)),
                **_way_of(model),
            ),
            pixels=pixels or _pixels_of(model),
            recipe=recipe,
            curves=list(curves),
            license=license,
            made_with=made_with or _installed(model),
        ),
        tensors,
    )


def _policy_of(block: nn.Module, name: str) -> MergePolicy:
    policy = getattr(block, "policy", None)
    if not isinstance(policy, MergePolicy) or not policy.name:
        raise ConfigError(f"the blocks of {name} have no merge policy that was built by its name")
    return policy


def _way_of(model: nn.Module) -> dict[str, Any]:
    """Fields of Merging about attention by size, and about rotary positions where the model has any. A
    patched model has both in its attribute `merging`."""
    merging = getattr(model, "merging", None)
    by_size = getattr(merging or model, "proportional_attention", "always")
    rule = getattr(merging, "rotary", None) or getattr(model, "rotary_rule", None)
    if getattr(model, "rope", None) is None or not isinstance(rule, RotaryRule):
        return {"proportional_attention": by_size}
    return {"proportional_attention": by_size, "rotary": rule.name, "rotary_bias": rule.bias}


def _pixels_of(model: nn.Module) -> Pixels | None:
    """What timm says of the images that the weights want; None for a model that timm did not build."""
    known = pretrained_of(model)
    if not known.get("mean") or not known.get("std"):
        return None
    return Pixels(
        mean=tuple(known["mean"]),
        std=tuple(known["std"]),
        **{name: known.get(name) for name in ("interpolation", "crop_pct", "crop_mode")},
    )


def _reduction(model: nn.Module, given: ReductionSpec | None, depth: int) -> Reduction | None:
    """What was given, else the model's own."""
    found = getattr(model, "reduction", None) if given is None else given
    return None if found is None else plain_reduction(found, depth)


def _installed(model: nn.Module) -> dict[str, str]:
    """Versions of what is here, and of the model's library."""
    found = {"dtem": VERSION, "torch": torch.__version__, "timm": timm.__version__}
    if any(kind.__module__.startswith("transformers.") for kind in type(model).__mro__):
        found["transformers"] = version("transformers")
    return found
