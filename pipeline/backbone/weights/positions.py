"""Resampling of a position embedding from another grid."""

import math

from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor

from pipeline.backbone.backbone import Backbone
from pipeline.errors import CheckpointError
from pipeline.token_state import Grid


def resampled(
    value: Tensor, own: Tensor, backbone: Backbone, grid: Grid | None
) -> tuple[Tensor, tuple[Grid, Grid] | None]:
    """A position embedding [1, prefix + rows * columns, C], resampled from its grid to the backbone's.

    grid: that of `value`; None where it is unknown. Returns the embedding, and both grids where they differ.
    An embedding that fits no grid is returned as it is. Raises CheckpointError where two grids fit.
    """
    if value.ndim != own.ndim or value.shape[-1] != own.shape[-1]:
        return value, None
    prefix = 0 if backbone.no_embed_class else backbone.num_prefix
    grid = grid or _likely_grid(value.shape[1] - prefix, backbone.grid)
    if grid is None or grid == backbone.grid or grid[0] * grid[1] + prefix != value.shape[1]:
        return value, None
    new = resample_abs_pos_embed(
        value, new_size=list(backbone.grid), old_size=list(grid), num_prefix_tokens=prefix
    )
    return new, (grid, backbone.grid)


def _likely_grid(positions: int, own: Grid) -> Grid | None:
    """The grid of this number of positions: a square, else the backbone's own; None where neither fits.
    Raises CheckpointError where both do."""
    side = math.isqrt(max(positions, 0))
    is_square, is_own = side > 0 and side**2 == positions, positions == own[0] * own[1]
    if is_square and is_own and own != (side, side):
        raise CheckpointError(
            f"'pos_embed' has {positions} positions, which could be a grid of {side}x{side} or of "
            f"{own[0]}x{own[1]}, and the file does not say; give the folder of a run or a file of `dtem "
            "export`, which do, or call load_weights with grid=(rows, columns)"
        )
    return (side, side) if is_square else own if is_own else None
