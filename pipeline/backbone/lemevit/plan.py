"""What stages a LeMeViT has, and whether that can be built. Standard library only."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.errors import ConfigError

KINDS = "CDS"
"""Cross-attention, by which meta tokens read patches; dual cross-attention; self-attention."""
STEM = 4
"""Pixels of a patch behind the stem."""
MOST_BLOCKS, MOST_CHANNELS, MOST_META = 512, 1 << 13, 1 << 12
"""Largest sizes. A stranger's run may ask for what takes hours to build."""


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """The sizes of a LeMeViT. kinds: a letter of KINDS for each stage. depths, widths: blocks and channels of
    each stage. layer_scale: where LayerScale starts; None: there is none, as in the authors' sizes."""

    depths: Sequence[int]
    widths: Sequence[int]
    kinds: str = "CDDSS"
    head_dim: int = 32
    mlp_ratio: float = 4.0
    num_meta: int = 16
    layer_scale: float | None = None
    in_chans: int = 3

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        stages = len(self.kinds)
        if not stages or set(self.kinds) - set(KINDS):
            raise _mistake("kinds", self.kinds, f"a letter for each stage, of {', '.join(KINDS)}: CDDSS")
        for name in ("depths", "widths"):
            values = getattr(self, name)
            if len(values) != stages or min(values, default=0) < 1:
                whole = f"{stages} whole numbers from 1 on, one for each stage of kinds {self.kinds}"
                raise _mistake(name, list(values), whole)
        if sum(self.depths) > MOST_BLOCKS:
            raise _mistake("depths", list(self.depths), f"at most {MOST_BLOCKS} blocks in all")
        if max(self.widths) > MOST_CHANNELS or self.widths[0] % 2:
            raise _mistake("widths", list(self.widths), f"at most {MOST_CHANNELS}, the first one even")
        if self.head_dim < 1 or any(width % self.head_dim for width in self.widths):
            raise _mistake("head_dim", self.head_dim, f"what divides all widths {list(self.widths)}")
        if not 0 < self.mlp_ratio <= 64 or int(self.mlp_ratio * min(self.widths)) < 1:
            raise _mistake("mlp_ratio", self.mlp_ratio, "a number above 0, at most 64")
        if not 1 <= self.num_meta <= MOST_META:
            raise _mistake("num_meta", self.num_meta, f"1 to {MOST_META} meta tokens")
        if not 1 <= self.in_chans <= MOST_CHANNELS:
            raise _mistake("in_chans", self.in_chans, f"1 to {MOST_CHANNELS} channels of the images")
        if self.layer_scale is not None and not 0 < self.layer_scale <= 1:
            raise _mistake("layer_scale", self.layer_scale, "a number in (0, 1], or None")
        for stage in range(1, stages):
            if not self.halves[stage] and self.widths[stage] != self.widths[stage - 1]:
                as_wide = "the stage behind one of kind C as wide as it: it reads the same patches"
                raise _mistake("widths", list(self.widths), as_wide)

    @property
    def halves(self) -> tuple[bool, ...]:
        """Whether the way into each stage halves the grid: not behind the stem, nor behind kind C, which
        leaves the patches as they are."""
        return (False, *(kind != "C" for kind in self.kinds[:-1]))

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels of a patch, in each stage."""
        return tuple(STEM << sum(self.halves[: stage + 1]) for stage in range(len(self.kinds)))

    @property
    def starts(self) -> tuple[int, ...]:
        """The first block of each stage."""
        return tuple(sum(self.depths[:stage]) for stage in range(len(self.depths)))

    @property
    def ends(self) -> tuple[int, ...]:
        """The last block of each stage."""
        return tuple(start + depth - 1 for start, depth in zip(self.starts, self.depths, strict=True))

    @property
    def stage_of_blocks(self) -> tuple[int, ...]:
        """The stage of each block."""
        return tuple(stage for stage, depth in enumerate(self.depths) for _ in range(depth))


def _mistake(name: str, given: object, wanted: str) -> ConfigError:
    return ConfigError(f"backbone.options {name} is {given!r}; give {wanted}")
