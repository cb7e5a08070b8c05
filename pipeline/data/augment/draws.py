"""What is drawn for an image whose colours are changed on the device: by the draws of `train_transform`, in
their order, without the pixels."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from timm.data.auto_augment import AugMixAugment
from torchvision.transforms import v2

from pipeline.changes.changes import Change
from pipeline.changes.moves import kind_of
from pipeline.config.schema import AugmentConfig
from pipeline.data.augment.policies import jitter_strengths, operators, policy_of
from pipeline.errors import ConfigError

Draw = Callable[[], tuple[Change, ...]]

KINDS = {
    "AutoContrast": "autocontrast",
    "Equalize": "equalize",
    "Invert": "invert",
    "Posterize": "posterize",
    "Solarize": "solarize",
    "SolarizeAdd": "solarize_add",
    "Color": "saturation",
    "Contrast": "contrast",
    "Brightness": "scale",
    "Sharpness": "sharpness",
    "Desaturate": "saturation",
}
"""timm's operator, but for `Increasing`, `Original` and the like behind it -> kind of change."""
MOVES = ("Rotate", "Shear", "Translate")
SOLARIZED = 128
"""The level below which timm's SolarizeAdd adds."""


def drawing(config: AugmentConfig, size: tuple[int, int]) -> Draw:
    """Draws what `colour_changes` would do with an image of (height, width), from the same generators. Raises
    ConfigError for what the device does not do."""
    draws: list[Callable[[], Sequence[Change]]] = []
    if config.rand_augment:
        draws.append(_policy(config, size))
    if any(jitter := jitter_strengths(config)):
        draws.append(partial(_jitter, v2.ColorJitter(*jitter)))
    if config.grayscale:
        draws.append(lambda: [Change("to_grey")] if torch.rand(1) < config.grayscale else [])
    return lambda: tuple(change for draw in draws for change in draw())


def _policy(config: AugmentConfig, size: tuple[int, int]) -> Callable[[], Sequence[Change]]:
    policy = policy_of(config, min(size))
    if policy is None or isinstance(policy, AugMixAugment):
        raise ConfigError(
            f"augment.rand_augment is '{config.rand_augment}', which is not computed on the device; leave "
            "augment.on_device out"
        )
    for op in operators(policy):
        if not op.name.startswith(MOVES):
            op.aug_fn = partial(_keep, _operator_of(op.name, config))

    def draw() -> Sequence[Change]:
        drawn = _Drawn(size)
        policy(drawn)
        return drawn.changes

    return draw


def _operator_of(name: str, config: AugmentConfig) -> str:
    found = [known for known in KINDS if name.startswith(known)]
    if not found:
        raise ConfigError(
            f"augment.rand_augment '{config.rand_augment}' has {name}, which is not computed on the device; "
            "leave augment.on_device out"
        )
    return max(found, key=len)


def _keep(operator: str, drawn: "_Drawn", *args: float, **_: Any) -> "_Drawn":
    """Notes an operator in place of carrying it out."""
    if operator == "Desaturate":
        args = (min(1.0, max(0.0, 1 - args[0])),)
    args += {"Brightness": (0.0,), "SolarizeAdd": (SOLARIZED,)}.get(operator, ())
    drawn.changes.append(Change(KINDS[operator], args))
    return drawn


class _Drawn:
    """Stands for an image of Pillow's, and keeps what timm's operators ask of it."""

    def __init__(self, size: tuple[int, int]):
        height, width = size
        self.size = width, height
        self.changes: list[Change] = []

    def transform(
        self,
        size: tuple[int, int],
        method: int,
        data: Sequence[float],
        resample: int,
        fillcolor: Sequence[float],
    ) -> "_Drawn":
        kind = kind_of(data, {2: "bilinear", 3: "bicubic"}[int(resample)])
        self.changes.append(Change(kind, (*data, *fillcolor)))
        return self

    def rotate(self, degrees: float, resample: int, fillcolor: Sequence[float]) -> "_Drawn":
        """About the middle, against the clock."""
        cos, sin = (function(-math.radians(degrees)) for function in (math.cos, math.sin))
        x, y = (side / 2 for side in self.size)
        back = (cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y)
        return self.transform(self.size, 0, back, resample, fillcolor)


def _jitter(jitter: v2.ColorJitter) -> Sequence[Change]:
    drawn = jitter.make_params([])
    factors = [drawn[f"{name}_factor"] for name in ("brightness", "contrast", "saturation", "hue")]
    changes = [
        None if factor is None else Change(kind, (factor, *more))
        for (kind, *more), factor in zip(
            (("scale", 0.0), ("jitter_contrast",), ("jitter_saturation",), ("jitter_hue",)),
            factors,
            strict=True,
        )
    ]
    return [change for number in drawn["fn_idx"] if (change := changes[number]) is not None]
