"""The base class of backbones: what tasks, objectives, engines and commands may ask of one. `MergingViT`
drives timm's models; a backbone of another kind is a subclass with a name in BACKBONES."""

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from pipeline.backbone.mac_count import MacCount
from pipeline.errors import ConfigError
from pipeline.merging.policy import MergePolicy
from pipeline.merging.schedule import ReductionSpec
from pipeline.parts import BASE
from pipeline.registry import Registry
from pipeline.token_state import BackboneOutput, Grid


class Backbone(nn.Module):
    """Maps images to states of tokens. A subclass sets the attributes below, and defines `macs`, and
    `forward` with the arguments of `MergingViT.forward`."""

    part_kind = BASE
    never_merges = ""
    """Why no policy can merge its tokens, for a message; empty where some can."""
    in_chans = 3
    """Channels of the images."""
    reads_clips = False
    """Whether it reads clips [B, T, 3, H, W], whose final state has a grid (t, h, w)."""
    no_embed_class = False
    """Whether its position embedding, if it has one, is of the patches alone."""

    forward: Callable[..., BackboneOutput]
    policy: MergePolicy
    blocks: nn.ModuleList
    """In order. A tap is the state after one of them."""
    norm: nn.Module
    """The last one, which `BackboneOutput.final` has passed."""
    depth: int
    embed_dim: int
    """Channels of the final state."""
    widths: tuple[int, ...]
    """Channels of the state after each block."""
    grid: Grid
    """Of the final state's patches, for images of the size that it was built for."""
    patch_size: tuple[int, int]
    """Pixels (height, width) of a patch of the final state, which sides of images have to divide by."""
    num_prefix: int
    global_pool: str
    """How a head pools the final state, see `tasks.shared.pooling`; or `map`."""
    pools_prefix: bool
    """Whether pooling by attention reads the prefix too."""
    norm_after_pool: bool
    """Whether the last norm stands between pooling and head; the final state has then passed none."""
    dist_token: nn.Parameter | None
    """The distillation token, the second of the prefix."""
    build_fc_norm: Callable[[], nn.Module]
    """Builds a copy of the norm between pooling and head, for a head to own."""
    build_attn_pool: Callable[[], nn.Module | None]
    """Builds a copy of the pooling by attention, for a head to own; None where there is none."""
    _reduction: ReductionSpec = 0

    def layers(self) -> list[Sequence[nn.Module]]:
        """The parts from the first block on, by layer, for learning rates that fall with depth: a layer for
        each block, and one for what is behind them. What is in none of them lies before the blocks."""
        return [*([block] for block in self.blocks), [self.norm]]

    def macs(self, grid: Grid) -> MacCount:
        """MACs of one image in inference, without a head, where its final state has this grid."""
        raise NotImplementedError

    def tokens_at_start(self, grid: Grid) -> int:
        """Tokens that enter the first block, counted as in `MacCount.tokens`."""
        return math.prod(grid) + self.num_prefix

    def set_reduction(self, reduction: ReductionSpec) -> None:
        """Sets the reduction that `forward` uses when it is given none. Raises ConfigError for a wrong
        one."""
        self.schedule(self.grid, reduction)
        self._reduction = reduction

    @property
    def reduction(self) -> ReductionSpec:
        """The reduction that `forward` uses when it is given none."""
        return self._reduction

    def schedule(self, grid: Grid, reduction: ReductionSpec | None = None) -> tuple[int, ...]:
        """r of each block for an input of a grid of patches."""
        num_tokens = math.prod(grid) + self.num_prefix
        wanted = self._reduction if reduction is None else reduction
        return self.policy.schedule(wanted, self.depth, num_tokens, self.num_prefix)

    def input_shape(self, size: tuple[int, int]) -> tuple[int, ...]:
        """Shape of an image of (height, width) pixels."""
        return self.in_chans, *size

    def grid_of(self, images: Tensor) -> Grid:
        """Grid (h, w) of patches of images [B, C, H, W]. Raises ConfigError for another shape, and where H or
        W does not divide by the patch."""
        if images.ndim != 4 or images.shape[1] != self.in_chans or 0 in images.shape[2:]:
            raise ConfigError(
                f"images have the shape {list(images.shape)}; give [batch, {self.in_chans}, height, width]"
            )
        return self.grid_of_size((images.shape[-2], images.shape[-1]))

    def grid_of_size(self, size: tuple[int, int]) -> Grid:
        """Grid (h, w) of patches of images of (height, width) pixels. Raises ConfigError where these do not
        divide by the patch."""
        (height, width), (patch_h, patch_w) = size, self.patch_size
        if height % patch_h or width % patch_w:
            near = f"{max(1, round(height / patch_h)) * patch_h}x{max(1, round(width / patch_w)) * patch_w}"
            raise ConfigError(
                f"input {height}x{width} does not divide by the patch {patch_h}x{patch_w}; nearest: {near}"
            )
        return height // patch_h, width // patch_w


def check_normalised(images: Tensor) -> None:
    """Raises ConfigError for images of bytes."""
    if not images.is_floating_point():
        raise ConfigError(
            f"images are {images.dtype}; a backbone reads normalised floats, (x / 255 - mean) / std, as "
            "`to` of a stream's batch makes them"
        )


BACKBONES: Registry[Backbone] = Registry("backbone")
"""Backbones that are none of timm's, by the names that `backbone.name` gives. What is filed is called with a
MergePolicy and the options img_size, drop_path and grad_checkpointing; its further options, which are those
of `backbone.options`, have defaults. `pipeline.backbone.build` fills it."""
