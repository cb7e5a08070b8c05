"""What adapter_config.json of a merge adapter says: strict and plain data. What is not known is left out."""

import json
import re
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from pathlib import PurePosixPath
from typing import Any

from pipeline.backbone.rotary import RotaryRule
from pipeline.backbone.run_blocks import check_proportional_attention
from pipeline.config.build import build_dataclass, plain
from pipeline.config.reduction_schema import Reduction, ReductionConfig, require
from pipeline.errors import ConfigError
from pipeline.merging.policies import POLICIES

FORMAT = 1
LARGEST = {"depth": 512, "width": 1 << 16}
"""Largest sizes of a base model."""


@dataclass(frozen=True, kw_only=True)
class Base:
    """The model that the embeddings were taught on."""

    architecture: str
    """timm's name without a tag, or the name of the model's class."""
    width: int
    """Channels of a token."""
    depth: int
    """Number of blocks."""
    digest: str
    """See `pipeline.backbone.adapters.digest`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of timm's class besides, where it was built with any."""
    name: str | None = None
    """Name of the weights on the Hugging Face hub, for instance `timm/deit_small_patch16_224.fb_in1k`."""

    def __post_init__(self) -> None:
        for name, most in LARGEST.items():
            value = getattr(self, name)
            require(1 <= value <= most, f"{name} is {value}; give a number from 1 to {most}")
        require(bool(re.fullmatch("[0-9a-f]{64}", self.digest)), "digest is not 64 hex digits in lower case")

    def __str__(self) -> str:
        return f"{self.name or self.architecture} (digest {self.digest[:12]})"


@dataclass(frozen=True, kw_only=True)
class Merging:
    """The policy that reads the embeddings."""

    policy: str
    options: dict[str, Any] = field(default_factory=dict)
    reduction: Reduction | None = None
    """The reduction that is recommended."""
    rotary: str | None = None
    """Rule by which rotary positions merge, where the base has them; see `RotaryRule`."""
    rotary_bias: bool = False
    proportional_attention: str = "always"

    def __post_init__(self) -> None:
        ReductionConfig(reduction=self.reduction or 0)
        check_proportional_attention(self.proportional_attention)
        _ = self.rotary_rule
        if not POLICIES.build(self.policy, **self.options).embeds:
            raise ConfigError(
                f"policy '{self.policy}' learns no embedding, so there is no adapter for it; give one that "
                "does, such as 'dtem'"
            )

    @property
    def rotary_rule(self) -> RotaryRule | None:
        return None if self.rotary is None else RotaryRule(self.rotary, self.rotary_bias)


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """How the base reads images."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str | None = None
    crop_pct: float | None = None
    crop_mode: str | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the embeddings were taught."""

    objective: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the objective."""
    mode: str | None = None
    """train.mode; in `joint` and `end_to_end` the base learned too."""
    steps: int | None = None
    seed: int | None = None
    data: str | None = None
    """Name of the images."""
    data_digest: str | None = None
    """First hex digits of the digest in the manifest of the shards."""


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """Scores at about one share of the MACs."""

    reduction: Reduction
    """That of the adapter's policy."""
    macs: float
    """Share of the unmerged model's MACs under the adapter's policy."""
    scores: dict[str, float]
    """Policy -> score, a share in [0, 1] where the unit is `%`. `none` is the unmerged model;
    `NAME_untrained` has an embedding as it was drawn."""

    def __post_init__(self) -> None:
        ReductionConfig(reduction=self.reduction)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Scores against compute."""

    task: str
    metric: str
    unit: str = ""
    split: str | None = None
    samples: int | None = None
    points: list[CurvePoint]


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """All that is known of a merge adapter beside its tensors."""

    format: int = FORMAT
    base: Base
    merging: Merging
    pixels: Pixels | None = None
    recipe: Recipe | None = None
    curves: list[Curve] = field(default_factory=list)
    license: str | None = None
    tensors_sha256: str | None = None
    """Of the file of tensors, which a folder has beside this."""
    made_with: dict[str, str] = field(default_factory=dict)
    """Package -> version, and the commit."""

    def __post_init__(self) -> None:
        require(
            self.format == FORMAT,
            f"format is {self.format} and this program reads {FORMAT}; update dtem, or save the adapter anew",
        )

    def to_json(self) -> str:
        return json.dumps(_known(self), indent=1)


def name_of_data(source: str | None) -> str | None:
    """Name of a folder of images, without the way to it; None for what is no folder, as a URL or a command
    may hold a secret."""
    name = PurePosixPath(source or "").name
    return name if ":" not in (source or "") and re.fullmatch(r"[\w.-]+", name) else None


def from_json(text: str, source: str) -> AdapterConfig:
    """The inverse of `AdapterConfig.to_json`. Raises ConfigError that lists all mistakes. source: place of
    the text, for the message."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise ConfigError(f"{source} is not JSON: {err}") from err
    return build_dataclass(AdapterConfig, data, source)


def _known(value: Any) -> Any:
    """The value as plain data, without what has its default."""
    if is_dataclass(value):
        given = {item.name: getattr(value, item.name) for item in fields(value) if _differs(value, item)}
        return {name: _known(item) for name, item in given.items()}
    return [_known(item) for item in value] if isinstance(value, list) else plain(value)


def _differs(value: Any, item: Field[Any]) -> bool:
    default = item.default if item.default_factory is MISSING else item.default_factory()
    return item.name == "format" or getattr(value, item.name) != default
