"""`patch` makes a model that exists merge its tokens, and `unpatch` takes that back."""

from pathlib import Path
from typing import Any, TypeVar, cast

from timm.models.eva import Eva
from timm.models.naflexvit import NaFlexVit
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import pipeline.backbone.hosts  # noqa: F401 - fills HOSTS
from pipeline.backbone.adapters.adapter import Adapter
from pipeline.backbone.adapters.public import load_adapter
from pipeline.backbone.auto_reduction import paying_reduction, read_auto
from pipeline.backbone.become import obstacle_of
from pipeline.backbone.classes import label
from pipeline.backbone.patching.dino_models import MODELS, PACKAGES, host_of_dino
from pipeline.backbone.patching.merging_model import Merging, MergingModel
from pipeline.backbone.patching.naflex_model import MergingNaFlexVit
from pipeline.backbone.patching.passed_by import own_members
from pipeline.backbone.patching.timm_models import MergingEva, MergingVisionTransformer
from pipeline.backbone.rotary import RotaryRule
from pipeline.errors import ConfigError
from pipeline.extras import extra
from pipeline.merging.policies import POLICIES
from pipeline.merging.schedule import ReductionSpec
from pipeline.merging.traits import check_serves

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")

DEFAULT_REDUCTION = 13
"""Tokens per block, where neither the caller nor an adapter says."""

HOSTS: dict[type[nn.Module], type[MergingModel]] = {
    VisionTransformer: MergingVisionTransformer,
    Eva: MergingEva,
    NaFlexVit: MergingNaFlexVit,
}
"""Class of a library's models -> the host of it and of its subclasses."""


def patch(
    model: M,
    policy: str = "dtem",
    reduction: ReductionSpec | str | None = None,
    *,
    adapter: str | Path | Adapter | None = None,
    check_base: bool = True,
    learns: bool = False,
    proportional_attention: str | None = None,
    rotary: RotaryRule | None = None,
    unmerge: str = "residual",
    **policy_options: Any,
) -> M:
    """Makes the model merge its tokens, and returns it: the same object, with the same keys.

    It is one of timm, of Hugging Face transformers, or of torch hub's DINOv2 and DINOv3. Its `forward` and
    methods for features stay what they are, for all positions. `model.reduction` can be set at any time, and
    0 gives the model's own outputs. policy: one of `pipeline.merging.policies`. reduction: see
    `ReductionSpec`; None: what the adapter recommends, else 13 tokens per block; `auto:R@IMAGES`: of R those
    merges that pay on the model's device for so many images at once, measured now, see `paying_reduction`.
    rotary, proportional_attention: None takes the adapter's, else mean rotation and `always`. adapter: the
    embedding of a policy that learns, as `load_adapter` takes it; None draws it anew, for one to be taught.
    check_base: whether the adapter has to be of these very weights. learns: train the embedding with the
    model, by the policy's differentiable merge; else it is frozen. unmerge: how methods for features of
    several blocks restore the grid, one of `UNMERGES`. Raises ConfigError for a model that is patched
    already, that merging would compute wrongly (docs/models.md) or that the policy cannot serve
    (docs/policies.md), and for wrong options; CheckpointError for an adapter of another model.
    """
    _check_unpatched(model)
    loaded = None if adapter is None else load_adapter(adapter)
    auto = read_auto(reduction) if isinstance(reduction, str) else None
    wished = auto.reduction if auto else cast("ReductionSpec | None", reduction)
    taught = {} if loaded is None else loaded.options_for(policy)
    own = None if loaded is None else loaded.config.merging
    merging = Merging(
        POLICIES.build(policy, **taught | policy_options),
        _first(wished, own and own.reduction, DEFAULT_REDUCTION),
        _first(proportional_attention, own and own.proportional_attention, "always"),
        _first(rotary, own and own.rotary_rule, RotaryRule()),
        learns,
        unmerge,
    )
    host = host_of(model)
    if obstacle := obstacle_in(model):
        raise ConfigError(f"{type(model).__name__} cannot merge: {obstacle}{host.WAY_OUT}")
    check_serves(merging.policy, traits_in(model, merging.rotary), type(model).__name__)
    patched = host.become(model, merging)
    try:
        patched.reduction = merging.reduction
        if loaded is not None:
            loaded.apply_to(patched, check_base=check_base)
        if auto:
            patched.reduction = paying_reduction(patched, merging.reduction, batch=auto.batch)
    except BaseException:
        unpatch(model)
        raise
    for block in patched.merging_blocks:
        for part in (block.metric, block.reducer, block.recovery):
            if part is not None:
                part.requires_grad_(learns)
    return model


def _check_unpatched(model: nn.Module) -> None:
    before = next((part for part in model.modules() if isinstance(part, MergingModel)), None)
    if before is not None:
        raise ConfigError(
            f"this {type(before).__name__} is patched already; set its reduction, or unpatch it before "
            "another policy"
        )


def _first(given: T | None, taught: T | None, usual: T) -> T:
    """What the caller gave, else the adapter's, else the usual."""
    return given if given is not None else taught if taught is not None else usual


def unpatch(model: M) -> M:
    """The model as it was before `patch`, and itself. Raises ConfigError for a model that is not patched."""
    if not isinstance(model, MergingModel):
        raise ConfigError(f"{type(model).__name__} is not patched")
    model.restore()
    return model


def host_of(model: nn.Module) -> type[MergingModel]:
    """The host of a model's class. Raises ConfigError where there is none."""
    kinds = type(model).__mro__
    found = next((HOSTS[kind] for kind in kinds if kind in HOSTS), None)
    if found is None and any(map(_from_transformers, kinds)):
        with extra("hf"):
            from pipeline.backbone.patching.hugging_face_outer import host_of_transformers
        return host_of_transformers(model)
    if found is None and any(map(_from_torch_hub, kinds)):
        return host_of_dino(model)
    if found is None:
        known = ", ".join([*sorted(kind.__name__ for kind in HOSTS), *MODELS])
        raise ConfigError(
            f"{label(type(model))} cannot merge: merging knows {known} and their subclasses"
            f"{_part_that_merges(model)} (docs/models.md)"
        )
    return found


def _part_that_merges(model: nn.Module) -> str:
    """What a message adds for a model around one that can merge, such as a wrapper."""
    for name, part in model.named_modules():
        if name and any(map(_is_known, type(part).__mro__)):
            return f"; patch its part `{name}`, if need be before the model is wrapped or compiled"
    return ""


def _is_known(kind: type) -> bool:
    return kind in HOSTS or label(kind) in MODELS or _from_transformers(kind)


def _from_transformers(kind: type) -> bool:
    return kind.__module__.startswith("transformers.")


def _from_torch_hub(kind: type) -> bool:
    return kind.__module__.startswith(PACKAGES)


def obstacle_in(model: nn.Module) -> str | None:
    """Why merging would be computed wrongly in a model; None where it would not. Raises ConfigError, see
    `host_of`."""
    host = host_of(model)
    blocks = host.blocks_of(model)
    if not blocks:
        return "it has no blocks"
    found = next(filter(None, map(obstacle_of, blocks)), None)
    return found or host.refuses(model) or own_members(model, host)


def traits_in(model: nn.Module, rotary: RotaryRule) -> frozenset[str]:
    """What a model has that a policy may require, by names in TRAITS, where its rotary positions would merge
    by this rule. Raises ConfigError, see `host_of`."""
    return host_of(model).traits(model, rotary)
