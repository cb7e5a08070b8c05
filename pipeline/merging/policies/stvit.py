"""STViT and STViT-R (Chang et al., CVPR 2023, arXiv 2303.08685): a few semantic tokens, made of all patches
by cross-attention, take their place from one block on.

They start as the largest values of regions of the grid. Then they attend to the patches and to one another
twice: in windows of the grid, with an overlap, and everywhere. With `recovery` (STViT-R) patches attend to
them behind the last block, so that a head has its grid.

The authors' code is STViT-R in a Swin: three groups of six blocks in its third stage, with windows of 7 and 3
x 3 semantic tokens each, of a grid of 14 x 14. This is its form for a plain ViT. There is one group, from
`block` to the end, and between both ends are the model's own blocks, in which prefix tokens take part. It
acts in the slot of all policies, between attention and MLP. The semantic tokens are as many as the reduction
leaves, the regions and windows are those of any grid, and a window sees its overlap on both sides. The second
set of learned tokens, which the authors' code leaves off, and convolutional positions are left out, and so
is drop path in the added parts. The pooled tokens stay in the sum, as elsewhere in the block; the authors'
code has that as its option `shortcut`, which is off.
"""

import math
from collections.abc import Mapping

from torch import nn

from pipeline.errors import ConfigError
from pipeline.merging.policy import POLICIES
from pipeline.merging.reducer import ReducingPolicy
from pipeline.merging.semantic_tokens import Recovery, SemanticTokens, cross_macs

NEAR_NOTHING = 1e-3
"""Factors of added branches with which semantic tokens are pooled patches but for rounding."""


@POLICIES.register("stvit")
class STViT(ReducingPolicy):
    """Replaces all patches by semantic tokens, in one block.

    block: see `ReducingPolicy`. window: side of the windows in patches, as near as the grid allows; None: no
    windows. overlap: patches that a window sees of its neighbours. recovery: whether patches attend to the
    semantic tokens behind the last block. init_values: where the factors of the added branches start; with
    1e-5, the authors', semantic tokens are at first no more than pooled patches, and recovered patches what
    they were in `block`. Raises ConfigError.
    """

    def __init__(
        self,
        *,
        block: int | None = None,
        window: int | None = 7,
        overlap: int = 3,
        recovery: bool = False,
        init_values: float = 1e-5,
    ):
        super().__init__(block)
        if (window is not None and window < 1) or overlap < 0:
            raise ConfigError(
                f"stvit: window is {window} and overlap {overlap}; give at least 1, or None, and 0"
            )
        if not 0 <= init_values < math.inf:
            raise ConfigError(f"stvit: init_values is {init_values}; give a number of 0 or more")
        self.window, self.overlap, self.recovers, self.init_values = window, overlap, recovery, init_values
        self.starts_alike = init_values <= NEAR_NOTHING

    def build_reducer(self, dim: int, heads: int) -> nn.Module:
        return SemanticTokens(
            dim,
            heads,
            window=self.window,
            overlap=self.overlap,
            scale=self.init_values,
            remembers=self.recovers,
        )

    def build_recovery(self, dim: int, heads: int) -> nn.Module:
        return Recovery(dim, heads, self.init_values)

    def macs(
        self, num_tokens: int, num_prefix: int, r: int, widths: Mapping[str, int], *, merged: bool
    ) -> int:
        """Of the semantic tokens, and of the recovery."""
        dim, patches, count = widths["tokens"], num_tokens - num_prefix, num_tokens - num_prefix - r
        made = 2 * cross_macs(count, count + patches, dim)
        return made + (cross_macs(patches, count, dim) if self.recovers else 0)
