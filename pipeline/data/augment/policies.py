"""Policies of many operators, such as RandAugment, by their names."""

from collections.abc import Callable
from functools import partial
from typing import Any

from timm.data.auto_augment import (
    augment_and_mix_transform,
    auto_augment_transform,
    rand_augment_transform,
)
from timm.data.transforms import str_to_pil_interp

from pipeline.config.schema import AugmentConfig
from pipeline.errors import ConfigError

TRIVIAL = "trivial"


def policy_of(config: AugmentConfig, size: int) -> Any:
    """timm's policy of the name `rand_augment`; None for torchvision's TrivialAugment. Operators fill what
    they uncover with the mean, and interpolate as the crop does. Raises ConfigError.

    size: pixels of the shorter side of the crop.
    """
    fill = tuple(min(255, round(255 * channel)) for channel in config.preprocessing.mean)
    given = train_interpolation(config)
    options: dict[str, Any] = {"img_mean": fill, "translate_const": int(0.45 * size)}
    if given != "random":  # without one, timm's operators draw theirs
        options["interpolation"] = str_to_pil_interp(given)
    name = config.rand_augment or ""
    if name == TRIVIAL:
        return None
    try:
        if name.startswith("rand"):
            policy = rand_augment_transform(name, options)
        elif name.startswith("augmix"):
            policy = augment_and_mix_transform(name, options | {"translate_pct": 0.3})
        else:
            policy = auto_augment_transform(name, options)
    except (AssertionError, ValueError, KeyError) as err:
        because = f" ({err})" if str(err) else ""
        raise ConfigError(
            f"augment.rand_augment is '{name}'{because}; give timm's notation, such as rand-m9-mstd0.5-inc1, "
            "augmix-m3-w3, original or 3a; or trivial"
        ) from err
    for op in operators(policy):
        if op.name.startswith("Posterize"):
            op.level_fn = partial(_at_least_one_bit, op.level_fn)
    return policy


def operators(of: Any) -> list[Any]:
    """Those of a policy of timm's: RandAugment and AugMix have a list of them, AutoAugment a list of
    lists."""
    return of.ops if hasattr(of, "ops") else [op for ops in of.policy for op in ops]


def _at_least_one_bit(level_fn: Callable[..., tuple[int]], *args: Any) -> tuple[int]:
    """At magnitude 10 timm posterises to 0 bits, which is a black image in older Pillow and an error in
    Pillow 13."""
    return (max(1, level_fn(*args)[0]),)


def train_interpolation(config: AugmentConfig) -> str:
    return config.train_interpolation or config.preprocessing.interpolation


def jitter_strengths(config: AugmentConfig) -> tuple[float, ...]:
    """Of the jitter of brightness, contrast, saturation and, where it is given, hue."""
    jitter = config.color_jitter
    return jitter if isinstance(jitter, tuple) else (jitter,) * 3
