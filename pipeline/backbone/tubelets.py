"""The embedding of clips, in VideoMAE's layout (Tong et al., NeurIPS 2022): a video ViT is timm's
VisionTransformer of the same sizes whose patches are tubelets, and whose keys have no bias.

All tokens of a clip attend to each other. Positions are fixed, sines and cosines of the tubelet's number.
There is no class token, and the mean of the tokens is normed, unless timm's options say otherwise.

B clips of T frames of H x W pixels, t times h rows times w columns of tubelets, C channels.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from timm.models.eva import EvaAttention
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import ConfigError
from pipeline.token_state import CHANGE, Carried, Grid, TokenState, widened

POSITIONS = "pos_embed"
"""timm's option of learned positions of patches."""
PLAIN = {"class_token": False, "global_pool": "avg", "no_embed_class": True}
"""timm's options of a video ViT, where others are not given."""


class KeysWithoutBias(EvaAttention):
    """timm's attention with a bias of queries and values alone, for its VisionTransformer. Raises ValueError
    for an output without a bias, which there is not."""

    def __init__(self, dim: int, *, proj_bias: bool = True, **options: Any):
        if not proj_bias:
            raise ValueError("attention over clips has a bias at its output")
        super().__init__(dim, **options)


class TubeletEmbed(nn.Module):
    """Clips, float [B, T, 3, H, W] -> [B, t h w, C]: a convolution over tubelets of `tubelet` frames and a
    patch each, plus their positions. Other options are those of timm's PatchEmbed that say nothing here."""

    positions: Tensor

    def __init__(
        self,
        *,
        frames: int,
        tubelet: int,
        img_size: int | tuple[int, int],
        patch_size: int | tuple[int, int],
        embed_dim: int,
        in_chans: int = 3,
        bias: bool = True,
        dynamic_img_pad: bool = False,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        self.tubelet = tubelet
        self.patch_size: tuple[int, int] = _both(patch_size)
        self.img_size: tuple[int, int] = _both(img_size)
        rows, columns = (size // patch for size, patch in zip(self.img_size, self.patch_size, strict=True))
        self.grid_size = (frames // tubelet, rows, columns)
        self.num_patches = self.grid_size[0] * rows * columns
        kernel = (tubelet, *self.patch_size)
        self.proj = nn.Conv3d(in_chans, embed_dim, kernel, kernel, bias=bias, device=device, dtype=dtype)
        positions = sines_and_cosines(self.num_patches, embed_dim)
        self.register_buffer("positions", positions.to(device=device, dtype=dtype), persistent=False)

    def feat_ratio(self, as_scalar: bool = True) -> int | tuple[int, int]:
        """Pixels of a token, as timm asks for them."""
        return max(self.patch_size) if as_scalar else self.patch_size

    def forward(self, clips: Tensor) -> Tensor:
        tubelets = self.proj(clips.transpose(1, 2))
        return tubelets.flatten(2).mT + self.positions_of(tuple(tubelets.shape[2:]))

    def positions_of(self, grid: Grid) -> Tensor:
        """[1, t h w, C]: the positions of a grid (t, h, w), resampled where it is not the embedding's own."""
        if grid == self.grid_size:
            return self.positions
        volume = widened(self.positions).mT.unflatten(-1, self.grid_size)
        found = F.interpolate(volume, size=grid, mode="trilinear").flatten(2).mT
        return found.to(self.positions.dtype)


def changes_of(clips: Tensor, tubelet: int, patch: tuple[int, int]) -> Tensor:
    """[B, t h w], float32 or wider: how much each tubelet of clips [B, T, 3, H, W] differs from the one
    before it in time: the mean over its pixels of the distance of its last frame from the first frame of that
    one. It is infinite at the first time. Raises ConfigError for clips of one tubelet in time."""
    if clips.shape[1] < 2 * tubelet:
        raise ConfigError(
            f"clips of {clips.shape[1]} frames have no tubelet before another; give {2 * tubelet} or more"
        )
    clips = clips.detach()
    before, behind = clips[:, :-tubelet:tubelet], clips[:, 2 * tubelet - 1 :: tubelet]
    apart = widened(behind - before).abs().mean(dim=2)
    # whatever pixels are, only the first time is infinite
    means = F.avg_pool2d(apart, patch).nan_to_num(nan=torch.finfo(apart.dtype).max)
    return F.pad(means, (0, 0, 0, 0, 1, 0), value=torch.inf).flatten(1)


def with_changes(state: TokenState, clips: Tensor, tubelet: int, patch: tuple[int, int]) -> TokenState:
    """The state whose tokens carry, as CHANGE, how much each differs from the one before it (`changes_of`),
    which is infinite for the prefix."""
    changes = F.pad(changes_of(clips, tubelet, patch), (state.num_prefix, 0), value=torch.inf)
    return replace(state, carried={**state.carried, CHANGE: Carried(changes, "first")})


def options_for_clips(given: Mapping[str, Any], frames: int, tubelet: int) -> dict[str, Any]:
    """Options of timm's class that make a VisionTransformer one of clips. given: the user's. Raises
    ConfigError for options that go with images alone."""
    if POSITIONS in given:
        raise ConfigError(f"backbone option '{POSITIONS}' goes with images: positions of clips are fixed")
    return {
        **PLAIN,
        **given,
        POSITIONS: "none",
        "dynamic_img_size": False,  # any size is taken
        "embed_layer": partial(TubeletEmbed, frames=frames, tubelet=tubelet),
        "attn_layer": KeysWithoutBias,
    }


def sines_and_cosines(count: int, channels: int) -> Tensor:
    """[1, count, C] float32: VideoMAE's fixed positions. The pair of channels 2i and 2i + 1 has the sine and
    the cosine of the number over 10000^(2i / C)."""
    channel, number = torch.arange(channels), torch.arange(count, dtype=torch.float64)
    angle = number[:, None] / 10000.0 ** (2 * (channel // 2).double() / channels)
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float()[None]


def _both(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
