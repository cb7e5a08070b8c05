"""Building of a backbone from its name, timm's or one in BACKBONES, and a merge policy."""

import inspect
from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.layers.hybrid_embed import HybridEmbed
from timm.layers.patch_embed import PatchEmbed
from timm.models import is_model_in_modules
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import pipeline.backbone.lemevit  # noqa: F401 - fills BACKBONES
from pipeline.backbone.adapters.embeddings import SUFFIX
from pipeline.backbone.backbone import BACKBONES, Backbone
from pipeline.backbone.become import obstacle_of
from pipeline.backbone.metric import EmbeddingSpec
from pipeline.backbone.rotary import RotaryRule
from pipeline.backbone.tubelets import KeysWithoutBias, TubeletEmbed, options_for_clips
from pipeline.backbone.vit import MergingViT, patch_of
from pipeline.config.schema import BackboneConfig, check_frames
from pipeline.errors import ConfigError
from pipeline.merging.policies import POLICIES
from pipeline.merging.policy import MergePolicy
from pipeline.merging.schedule import ReductionSpec
from pipeline.plan.facts import ModelFacts
from pipeline.registry import unknown_name

NOT_OPTIONS = {
    "img_size": "set backbone.img_size",
    "drop_path_rate": "set backbone.drop_path",
    "num_classes": "the head of the task has it",
    "pool_include_prefix": "an average is taken over the patches alone",
    "in_chans": "images have three channels",
    "device": "the engine moves the model",
    "dtype": "set engine.precision",
}
"""Arguments of timm's class that are set elsewhere -> where."""
CLASSES = (VisionTransformer, Eva)
OPTIONS = {name for kind in CLASSES for name in inspect.signature(kind.__init__).parameters} - {
    "self",
    *NOT_OPTIONS,
}
"""Arguments of timm's classes alone. Those of timm's loader are refused: `checkpoint_path` and
`pretrained_cfg` read files and URLs."""
LARGEST = {"depth": 512}
"""Largest values of options. A stranger's run may ask for a hundred thousand blocks, which take hours to
build."""


def build_backbone(
    name: str,
    *,
    policy: str = "none",
    reduction: ReductionSpec = 0,
    pretrained: bool = False,
    img_size: int | tuple[int, int] | None = None,
    frames: int = 1,
    tubelet: int = 2,
    proportional_attention: str = "always",
    grad_checkpointing: bool = False,
    drop_path: float = 0.0,
    timm_options: dict[str, Any] | None = None,
    embedding: EmbeddingSpec | None = None,
    rotary: RotaryRule | None = None,
    **policy_options: Any,
) -> Backbone:
    """A timm VisionTransformer or Eva that merges tokens by `policy`; or a backbone in BACKBONES.

    frames, tubelet: of clips, for a video ViT of a VisionTransformer's sizes (`pipeline.backbone.tubelets`).
    reduction: see `pipeline.merging.schedule.ReductionSpec`. proportional_attention: `always`, `train` (MAE)
    or `never`. embedding: whether tasks share the metric embedding (None: they do). rotary: how merged tokens
    get rotary positions (None: by mean rotation). timm_options go to timm's class, or to what is filed in
    BACKBONES; policy_options to the policy. Raises ConfigError for models that merging would compute wrongly
    (docs/models.md) and wrong options.
    """
    if isinstance(reduction, str):
        raise ConfigError(
            f"reduction '{reduction}' is measured on the device that the model is on: build it with r, move "
            "it, and give paying_reduction(model, r) to its set_reduction"
        )
    merge_policy = POLICIES.build(policy, **policy_options)
    if name in BACKBONES.names():
        if pretrained or frames > 1 or proportional_attention != "always":
            raise ConfigError(_not_for_others(name, pretrained, frames))
        sizes = {"img_size": img_size, "drop_path": drop_path, "grad_checkpointing": grad_checkpointing}
        backbone = _build_other(name, merge_policy, sizes, timm_options or {})
        backbone.set_reduction(reduction)
        return backbone
    vit = create_vit(
        name,
        pretrained=pretrained,
        img_size=img_size,
        frames=frames,
        tubelet=tubelet,
        drop_path=drop_path,
        timm_options=timm_options,
    )
    return MergingViT(
        vit,
        merge_policy,
        reduction,
        proportional_attention=proportional_attention,
        grad_checkpointing=grad_checkpointing,
        embedding=embedding,
        rotary=rotary,
    )


def _not_for_others(name: str, pretrained: bool, frames: int) -> str:
    """Why a setting is not for a backbone in BACKBONES."""
    if pretrained:
        return f"no weights of '{name}' can be downloaded; give backbone.weights, or train it from chance"
    if frames > 1:
        return f"'{name}' reads images alone; for clips give one of timm's VisionTransformer"
    return f"proportional_attention is about merged tokens, of which '{name}' has none; leave it out"


def _build_other(
    name: str, policy: MergePolicy, sizes: Mapping[str, Any], options: Mapping[str, Any]
) -> Backbone:
    """The backbone of that name in BACKBONES. Raises ConfigError."""
    for twice in sizes.keys() & options.keys():
        raise ConfigError(f"backbone option '{twice}' is not given here; set backbone.{twice}")
    return BACKBONES.build(name, policy, **sizes, **options)


def create_vit(
    name: str,
    *,
    pretrained: bool = False,
    num_classes: int | None = 0,
    img_size: int | tuple[int, int] | None = None,
    frames: int = 1,
    tubelet: int = 2,
    drop_path: float = 0.0,
    timm_options: dict[str, Any] | None = None,
) -> VisionTransformer | Eva:
    """timm's own model, after a check that MergingViT can drive it. num_classes: None keeps its own head.
    frames, tubelet: of clips; timm has no weights for those. Raises ConfigError."""
    if name in BACKBONES.names():
        raise ConfigError(f"'{name}' is none of timm's models, and only such can be given here")
    architecture = name.partition(".")[0]
    if architecture.endswith(SUFFIX):
        plain = architecture.removesuffix(SUFFIX)
        raise ConfigError(f"'{name}' names a model that merges already; give '{plain}' and a policy")
    if not timm.is_model(architecture):
        known = [known for known in timm.list_models() if not known.endswith(SUFFIX)]
        raise ConfigError(unknown_name("timm model", name, [*known, *BACKBONES.names()]))
    _check_options(timm_options or {})
    options = {"drop_path_rate": drop_path, **(timm_options or {})}
    if is_model_in_modules(architecture, ("eva",)):
        # else its rotary positions are those of one grid, whatever the images
        options["dynamic_img_size"] = True
    if img_size is not None:
        options["img_size"] = img_size
    if num_classes is not None:
        options["num_classes"] = num_classes
    check_frames(frames, tubelet)
    made = options
    if frames > 1:
        _check_clips(name, architecture, pretrained)
        made = options_for_clips(options, frames, tubelet)
    try:
        vit = timm.create_model(name, pretrained=pretrained, **made)
    except (TypeError, AssertionError, RuntimeError, ArithmeticError, ValueError, LookupError) as err:
        raise ConfigError(
            f"timm cannot build '{name}' with {options}: {str(err) or type(err).__name__}"
        ) from err
    except OSError as err:
        raise ConfigError(
            f"timm cannot load the weights of '{name}' ({err}); give backbone.weights (--weights), a "
            "file, instead"
        ) from err
    return _supported(vit, name)


def _check_clips(name: str, architecture: str, pretrained: bool) -> None:
    """Raises ConfigError where timm's model of this name cannot become one of clips."""
    if is_model_in_modules(architecture, ("eva", "vision_transformer_hybrid")):
        raise ConfigError(
            f"'{name}' reads images alone, by its rotary positions or its first layers; for clips give a "
            "plain VisionTransformer of timm's, such as vit_small_patch16_224"
        )
    if pretrained:
        raise ConfigError(
            f"timm's weights of '{name}' are of images; build it without pretrained, and give load_weights "
            "the state dict of timm's own model"
        )


def _check_options(options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        if name in NOT_OPTIONS:
            raise ConfigError(f"backbone option '{name}' is not given here; {NOT_OPTIONS[name]}")
        if name not in OPTIONS:
            raise ConfigError(unknown_name("backbone option", name, OPTIONS))
        most = LARGEST.get(name, 1 << 16)
        if isinstance(value, int | float) and not -most <= value <= most:
            raise ConfigError(f"backbone option '{name}' is {value}; give at most {most}")


def _supported(vit: nn.Module, name: str) -> VisionTransformer | Eva:
    """The model. Raises ConfigError for one that MergingViT would compute wrongly, naming the part."""
    if not isinstance(vit, CLASSES):
        raise ConfigError(
            f"'{name}' is a {type(vit).__name__}; merging drives timm's VisionTransformer (ViT, DeiT, MAE, "
            "DINOv2, SigLIP, ...) and Eva (EVA02, DINOv3, PE, ...)"
        )
    blocks = list(vit.blocks.children())
    strange = next(filter(None, map(obstacle_of, blocks)), None)
    obstacle = None
    if len(blocks) == 0:
        obstacle = "it has no blocks"
    elif strange:
        obstacle = strange
    elif isinstance(vit.patch_embed, TubeletEmbed) and not all(map(_attends_over_clips, blocks)):
        obstacle = "its blocks are not timm's plain ones, of which a video ViT is made"
    elif type(vit.patch_embed) not in (PatchEmbed, HybridEmbed, TubeletEmbed):
        obstacle = f"its patch embedding is {type(vit.patch_embed).__name__}, not one convolution"
    elif not isinstance(vit.patch_drop, nn.Identity | None):
        obstacle = (
            "patch dropout removes patches, so that the grid could not be restored; set patch_drop_rate to 0"
        )
    if obstacle:
        raise ConfigError(f"'{name}' is not supported: {obstacle}")
    return vit


def _attends_over_clips(block: nn.Module) -> bool:
    return isinstance(getattr(block, "attn", None), KeysWithoutBias)


def model_facts(config: BackboneConfig) -> ModelFacts:
    """Facts of the model for the checks of a run, from a model without memory (meta device). Raises
    ConfigError."""
    if config.name in BACKBONES.names():
        return _facts_of_other(config)
    with torch.device("meta"):
        vit = create_vit(
            config.name,
            img_size=config.img_size,
            frames=config.frames,
            tubelet=config.tubelet,
            timm_options=config.options,
        )
    return ModelFacts(
        patch=patch_of(vit),
        depth=len(list(vit.blocks.children())),
        num_prefix=vit.num_prefix_tokens,
        grid=tuple(vit.patch_embed.grid_size),
        class_token=getattr(vit, "cls_token", None) is not None,
        rotary=getattr(vit, "rope", None) is not None,
    )


def _facts_of_other(config: BackboneConfig) -> ModelFacts:
    with torch.device("meta"):
        backbone = build_backbone(
            config.name,
            pretrained=config.pretrained,
            img_size=config.img_size,
            frames=config.frames,
            proportional_attention=config.proportional_attention,
            timm_options=config.options,
        )
    if backbone.in_chans != 3:
        raise ConfigError(
            f"backbone.options in_chans is {backbone.in_chans}, and images of a run have three channels; "
            "leave it out (build_backbone takes it, for loops of your own)"
        )
    return ModelFacts(
        patch=backbone.patch_size,
        depth=backbone.depth,
        num_prefix=backbone.num_prefix,
        grid=backbone.grid,
        class_token=False,
        never_merges=backbone.never_merges,
        resamples=False,
    )
