"""TokenMixup in a head: its options, the small head that tells easy images, and what is learned of mixed ones
(`pipeline.backbone.token_mixup`). B batch, C channels, K classes."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.backbone.assignment import check_assignment
from pipeline.backbone.backbone import Backbone
from pipeline.backbone.saliency import BY_ALL, BY_CLASS
from pipeline.backbone.token_mixup import Horizontal, TokenMixing, Vertical
from pipeline.errors import ConfigError
from pipeline.interfaces import Sums
from pipeline.token_state import TokenMix, TokenState
from tasks.shared.options import from_options

Losses = Callable[[Tensor, Tensor], Tensor]
"""Maps logits [B, K] and labels, int64 [B] or float [B, K], to losses [B]."""


@dataclass(frozen=True)
class Across:
    """layer: the block behind which images are mixed. easy: the largest loss of the small head, in nats, of
    an image that is mixed (ten times the authors' tau). margin: by how much a partner's patch has to be more
    salient (rho). weight: of the small head's loss (lambda). detach: whether that loss leaves the backbone as
    it is."""

    layer: int
    easy: float = 1.0
    margin: float = 0.005
    weight: float = 0.001
    detach: bool = False

    def __post_init__(self) -> None:
        numbers = (self.easy, self.margin, self.weight)
        if any(type(x) not in (int, float) or not 0 <= x < math.inf for x in numbers) or self.weight == 0:
            raise ConfigError(
                f"token_mixup.horizontal: easy {self.easy}, margin {self.margin} and weight {self.weight}; "
                "give numbers of 0 or more, and a weight above 0"
            )
        if type(self.detach) is not bool:
            raise ConfigError(f"token_mixup.horizontal: detach is {self.detach!r}; give True or False")


@dataclass(frozen=True)
class Within:
    """layer: the block that also attends to tokens of earlier ones. keep: how many of each (kappa)."""

    layer: int
    keep: int = 3

    def __post_init__(self) -> None:
        if type(self.keep) is not int or self.keep < 1:
            raise ConfigError(f"token_mixup.vertical: keep is {self.keep!r}; give a whole number above 0")


class TokenMixup(nn.Module):
    """The settings of a head, and the small head, a linear layer on the class token, or on the mean of the
    patches where there is none. options: `horizontal` and `vertical`, dicts of Across and Within, one or
    both; None is as left out. Raises ConfigError."""

    def __init__(self, backbone: Backbone, num_classes: int, options: Mapping[str, Any]):
        super().__init__()
        self.across, within = _read(options)
        by_class = "class_token" in getattr(backbone, "traits", ())
        _check_backbone(backbone, self.across, within)
        self._first_token = by_class
        self.score = None
        if self.across is not None:
            check_assignment()
            self.score = nn.Linear(backbone.embed_dim, num_classes)
            nn.init.trunc_normal_(self.score.weight, std=0.02)
            nn.init.zeros_(self.score.bias)
        self.mixing = TokenMixing(
            BY_CLASS if by_class else BY_ALL,
            _horizontal(self.across),
            None if within is None else Vertical(within.layer, within.keep),
        )

    def for_batch(self, labels: Tensor, losses: Losses) -> TokenMixing:
        """The mixing of a batch with these labels."""

        def difficulty(state: TokenState) -> Tensor:
            assert self.score is not None and self.across is not None
            read = state.tokens[:, 0] if self._first_token else state.patch_tokens.mean(dim=1)
            return losses(self.score(read.detach() if self.across.detach else read).float(), labels)

        return replace(self.mixing, difficulty=difficulty)

    def learned(self, mix: TokenMix, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Sums]:
        """The labels [B, K] of mixed images, what the small head adds to the loss, and what is reported."""
        assert self.across is not None
        whole = labels if labels.is_floating_point() else F.one_hot(labels, num_classes).float()
        share = mix.share.to(whole.dtype)[:, None]
        mixed = whole * (1 - share) + whole[mix.partner] * share
        with torch.no_grad():
            known = {
                "score_loss": mix.difficulty.detach(),
                "mixed_images": (mix.share > 0).float(),
                "mixed_patches": mix.replaced,
            }
            logs: Sums = {name: (value.sum(), len(labels)) for name, value in known.items()}
        return mixed, self.across.weight * mix.difficulty.mean(), logs


def _read(options: Mapping[str, Any]) -> tuple[Across | None, Within | None]:
    kinds = {"horizontal": Across, "vertical": Within}
    options = {key: own for key, own in options.items() if own is not None}
    wrong = [key for key, own in options.items() if key not in kinds or not isinstance(own, Mapping)]
    if wrong or not options:
        raise ConfigError(
            f"token_mixup is {options}; give horizontal=dict(layer=..., ...), vertical=dict(layer=..., "
            "...), or both"
        )
    found: dict[str, Any] = {}
    for key, own in options.items():
        if "layer" not in own:
            raise ConfigError(f"token_mixup.{key} has no layer; give the number of a block, as layer=2")
        found[key] = from_options(kinds[key], f"token_mixup.{key}", own)
    return found.get("horizontal"), found.get("vertical")


def _horizontal(across: Across | None) -> Horizontal | None:
    return None if across is None else Horizontal(across.layer, across.margin, across.easy)


def _check_backbone(backbone: Backbone, across: Across | None, within: Within | None) -> None:
    if backbone.never_merges:
        raise ConfigError(
            f"token_mixup reads the attention of a ViT's blocks, and {type(backbone).__name__} has others; "
            "give one of timm's ViTs, or leave token_mixup out"
        )
    last = backbone.depth - 1
    if across is not None and (type(across.layer) is not int or not 0 <= across.layer < last):
        raise ConfigError(
            f"token_mixup.horizontal.layer is {across.layer!r}; give a block from 0 to {last - 1}: behind "
            "the last one nothing attends to what was mixed"
        )
    if within is not None and (type(within.layer) is not int or not 1 <= within.layer <= last):
        raise ConfigError(
            f"token_mixup.vertical.layer is {within.layer!r}; give a block from 1 to {last}, which has an "
            "earlier one"
        )
    if within is not None and "added_positions" not in getattr(backbone, "traits", ()):
        raise ConfigError(
            "token_mixup.vertical attends to tokens of earlier blocks without turning them, and the "
            "positions of this backbone are rotary; leave vertical out, or give one with added positions"
        )
