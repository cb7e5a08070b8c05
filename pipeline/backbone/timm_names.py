"""timm's names of models that merge: `NAME_dtem` for each architecture NAME that `patch` may take.

    timm.create_model("deit_small_patch16_224_dtem", pretrained=True, adapter="hf-hub:USER/NAME", reduction=8)

config.json of an export, and of timm's own `push_to_hf_hub`, names such an architecture. So `local-dir:` and
`hf-hub:` give the model that merges. What is not timm's is imported when a model is built.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
from timm.models import model_entrypoint, register_model
from torch import Tensor, nn

from pipeline.backbone.adapters.embeddings import SUFFIX
from pipeline.merging.schedule import ReductionSpec

MODULES = ("vision_transformer", "deit", "eva", "naflexvit")
"""timm's modules whose architectures are registered."""
WEIGHTS = "model.safetensors"


def register_names() -> None:
    """Registers the names in timm. A name that is there stays."""
    for module in MODULES:
        for name in timm.list_models(module=module):
            if not timm.is_model(name + SUFFIX):
                register_model(_entry_point(name))


def plain_names() -> list[str]:
    """timm's names of the models that `backbone.name` may give; a few are refused when they are built."""
    modules = [module for module in MODULES if module != "naflexvit"]
    names = {name for module in modules for name in timm.list_models(module=module)}
    return sorted(name for name in names if not name.endswith(SUFFIX))


def _entry_point(name: str) -> Callable[..., nn.Module]:
    def create(
        pretrained: bool = False,
        *,
        policy: str = "dtem",
        policy_options: Mapping[str, Any] | None = None,
        reduction: ReductionSpec | None = None,
        adapter: Any = None,
        check_base: bool = True,
        proportional_attention: str | None = None,
        rotary: str | None = None,
        rotary_bias: bool = False,
        **options: Any,
    ) -> nn.Module:
        """timm's model of this name, patched; see `pipeline.patch`. reduction: a list of two numbers, as JSON
        has it, is (r, inflection). The embeddings are those of the weights at `local-dir:` or `hf-hub:`; of
        the adapter where there are none. Raises ConfigError and CheckpointError."""
        from pipeline.backbone.patching.patch import patch
        from pipeline.backbone.rotary import RotaryRule

        source = _source_of(options.get("pretrained_cfg")) if pretrained else None
        if source is not None:
            # timm's model has no place for the embeddings
            options["pretrained_strict"] = False
        model = model_entrypoint(name)(pretrained=pretrained, **options)
        saved = {} if source is None else _saved_embeddings(model, source, options.get("cache_dir"))
        if isinstance(reduction, list) and len(reduction) == 2:
            reduction = reduction[0], reduction[1]
        patch(
            model,
            policy,
            reduction,
            adapter=None if saved else adapter,
            check_base=check_base,
            proportional_attention=proportional_attention,
            rotary=None if rotary is None else RotaryRule(rotary, rotary_bias),
            **(policy_options or {}),
        )
        _fill(model, saved, str(source))
        model.pretrained_cfg = model.default_cfg = {**model.pretrained_cfg, "architecture": name + SUFFIX}
        return model

    create.__name__ = create.__qualname__ = name + SUFFIX
    return create


def _source_of(config: Any) -> str | None:
    """The folder, or `hf-hub:USER/NAME`, that timm read this configuration from; None for its own names."""
    known = config if isinstance(config, Mapping) else {}
    if known.get("source") == "local-dir":
        return str(known["file"])
    return f"hf-hub:{known['hf_hub_id']}" if known.get("source") == "hf-hub" else None


def _saved_embeddings(model: nn.Module, source: str, cache_dir: Any) -> dict[str, Tensor]:
    """The metric embeddings in the weights of a folder or repository; none where it has no WEIGHTS. Raises
    CheckpointError where those lack a part of the model but its head, whose place timm has left as drawn."""
    from safetensors import safe_open

    from pipeline.backbone.adapters.hub import PREFIX, cached_file
    from pipeline.backbone.metric import is_embedding
    from pipeline.backbone.weights.plain_models import HEADS
    from pipeline.errors import CheckpointError

    path = cached_file(source, WEIGHTS, cache_dir) if source.startswith(PREFIX) else Path(source) / WEIGHTS
    if path is None or not path.is_file():
        return {}
    with safe_open(path, framework="pt") as file:
        lacking = sorted(key for key in model.state_dict().keys() - file.keys() if not key.startswith(HEADS))
        if lacking:
            raise CheckpointError(
                f"the weights of {source} have no {lacking[0]} ({len(lacking)} tensors of the model in all); "
                "they are to have timm's keys, as `dtem export` and timm's save_for_hf write them"
            )
        return {key: file.get_tensor(key) for key in file.keys() if is_embedding(key)}


def _fill(model: nn.Module, saved: Mapping[str, Tensor], source: str) -> None:
    """Loads the embeddings of the weights; none are none."""
    from pipeline.backbone.metric import is_embedding
    from pipeline.errors import CheckpointError

    own = {key: value.shape for key, value in model.state_dict().items() if is_embedding(key)}
    if saved and own != {key: value.shape for key, value in saved.items()}:
        raise CheckpointError(
            f"the metric embeddings of {source} are not those of this model and policy; give the policy and "
            "the policy_options that it was saved with, as its config.json says"
        )
    model.load_state_dict(dict(saved), strict=False)
