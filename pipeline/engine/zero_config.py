"""The DeepSpeed configuration: generated from ours, and merged with the user's where the two agree."""

from collections.abc import Mapping
from typing import Any

from pipeline.config.schema import RunConfig
from pipeline.errors import ConfigError

BUCKET = 50_000_000
"""Elements of a communication buffer: 200 MB. DeepSpeed's default takes 2 GB for any model."""

OURS = {
    "optimizer": "optim",
    "scheduler": "optim.lr, optim.min_lr and optim.warmup_steps",
    "train_batch_size": "tasks.*.data.batch_size",
    "gradient_accumulation_steps": "engine.accumulation or tasks.*.accumulation",
}
"""Section of DeepSpeed that is never merged -> the field to set instead."""


def zero_config(config: RunConfig) -> dict[str, Any]:
    """Plain data for DeepSpeed. Raises ConfigError with every field of engine.deepspeed that contradicts the
    run.

    bf16 is autocast over fp32 weights, so that both engines and all ZeRO stages compute the same; DeepSpeed's
    own `bf16` section would keep rounded weights beside the fp32 ones. Stage 0 is clipped by our engine, as
    DeepSpeed hides the norm there.
    """
    owned = {
        "train_micro_batch_size_per_gpu": (
            "tasks.*.data.batch_size",
            next(iter(config.tasks.values())).data.batch_size,
        ),
        "gradient_clipping": ("optim.clip_grad", config.optim.clip_grad or 0.0),
        "zero_optimization.stage": ("engine.zero_stage", config.engine.zero_stage),
        "torch_autocast.enabled": ("engine.precision", config.engine.precision == "bf16"),
        "torch_autocast.dtype": ("engine.precision", "bfloat16"),
        "bf16.enabled": ("engine.precision (autocast; DeepSpeed's own bf16 is not used)", False),
        "fp16.enabled": ("engine.precision", False),
    }
    # overlap_comm at stage 1 sums over ranks only the parameters that the last micro-batch used
    if config.engine.zero_stage == 1:
        owned["zero_optimization.overlap_comm"] = ("engine.zero_stage=1 (take 2 or 3)", False)
    user = {field: value for field, value in _flat(config.engine.deepspeed).items() if value != "auto"}
    _refuse_contradictions(user, owned)
    defaults = {
        "torch_autocast.lower_precision_safe_modules": [],
        "zero_optimization.reduce_bucket_size": BUCKET,
        "zero_optimization.allgather_bucket_size": BUCKET,
        "zero_allow_untested_optimizer": True,
        # the loop says which micro-batch is the last of a step
        "gradient_accumulation_steps": 1,
        "steps_per_print": None,
    }
    merged = _nested(defaults | user | {field: value for field, (_, value) in owned.items()})
    if config.engine.zero_stage == 0:
        merged["gradient_clipping"] = 0.0
    return merged


def _refuse_contradictions(user: Mapping[str, Any], owned: Mapping[str, tuple[str, Any]]) -> None:
    mistakes = []
    for field, value in user.items():
        if (section := field.split(".")[0]) in OURS:
            mistakes.append(f"engine.deepspeed.{field} is {value!r}; leave it out and set {OURS[section]}")
        elif field in owned and value != owned[field][1]:
            name, ours = owned[field]
            mistakes.append(
                f"engine.deepspeed.{field} is {value!r}, but {name} says {ours!r}; change one of them"
            )
    if mistakes:
        raise ConfigError("\n".join(mistakes))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict with dotted keys, each after the prefix."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return leaves


def _nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in leaves.items():
        *parents, name = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree
