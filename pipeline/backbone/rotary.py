"""Rotary positions of merged tokens; docs/models.md has the logits of each way.

A patch at position p rotates each pair of channels of its query and key by an angle theta(p). A merged token
stands for several patches, at several positions. There are four ways (`RULES`):

mean_rotation: the mean of the members' sines and cosines, which is shorter than one where they differ. It is
the first-order expansion of the exact logit, and proposed by ToMe's author (facebookresearch/ToMe#29).
destination: the position of the token that the others merged into (ToMA, FrameFusion).
mean_coordinate: the rotation at the mean of the members' coordinates.
virtual_unmerging: each member at its own position; attention is N x N again, and only projections and MLP are
saved (DyMU).

B batch, N patches + prefix, M tokens, H heads, D channels of a head, L blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import ConfigError
from pipeline.merging.apply import SMALLEST, replay
from pipeline.merging.rows import add_rows, per_row, quotient, take_rows
from pipeline.merging.unmerge import slot_rows
from pipeline.token_state import ROPE, Assignment, Carried, TokenState, rows_of, widened

RULES = ("mean_rotation", "destination", "mean_coordinate", "virtual_unmerging")


@dataclass(frozen=True)
class RotaryRule:
    """How merged tokens get their position. name: one of RULES. bias: with mean_rotation, add to the logits
    of each key what the mean loses to second order. Raises ConfigError."""

    name: str = "mean_rotation"
    bias: bool = False

    def __post_init__(self) -> None:
        if self.name not in RULES:
            raise ConfigError(f"rotary positions merge by '{self.name}'; give one of {', '.join(RULES)}")
        if self.bias and self.name != "mean_rotation":
            raise ConfigError(f"a bias of the rotary positions goes with 'mean_rotation', not '{self.name}'")


@dataclass(frozen=True)
class Rope:
    """Rotations for one block's attention."""

    table: Tensor
    """[B or 1, H or 1, M, 2D]: sines and cosines of the tokens; of the N inputs where there are `rows`."""
    half: bool
    """Whether channel i pairs with i + D/2, and not with its neighbour."""
    bias: bool = False
    rows: Tensor | None = None
    """[B, N]: for virtual unmerging, the token of each input, as a row of the flattened batch."""
    counts: Tensor | None = None
    """[B, N]: for virtual unmerging, the size of each input, which is 0 for padding; None: 1."""

    def rotate(self, x: Tensor) -> Tensor:
        """x [B, H, M, D], rotated, in its dtype."""
        return apply_rot_embed_cat(x, self.table, half=self.half)

    def key_bias(self, q: Tensor, k: Tensor, scale: float, size: Tensor | None) -> Tensor | None:
        """[B, H, M]: what a mean rotation loses of the logarithm of a key's weight, to second order and on
        average over the phases of the queries: scale^2 / 4 * sum over pairs b of channels of
        E|q_b|^2 |k_b|^2 (1 - |mean rotation_b|^2). q, k [B, H, M, D]; size [B, M]: how many queries each
        token stands for, None: one. None without `bias`."""
        if not self.bias:
            return None
        rotation = self._of_pairs(self.table.unflatten(-1, (2, -1)).square().sum(dim=-2)) / 2
        query = self._of_pairs(widened(q).square())
        share = torch.full_like(query[:, :1, :, :1], 1 / q.shape[2])
        if size is not None:
            share = (size / size.sum(dim=-1, keepdim=True))[:, None, :, None]
        lost = (query * share).sum(dim=2, keepdim=True) * self._of_pairs(widened(k).square()) * (1 - rotation)
        return lost.sum(dim=-1) * scale**2 / 4

    def _of_pairs(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D/2]: the sum over both channels of each pair."""
        return x.unflatten(-1, (2, -1)).sum(dim=-2) if self.half else x.unflatten(-1, (-1, 2)).sum(dim=-1)


@dataclass(frozen=True)
class Rotary:
    """The rotary positions of one forward pass."""

    tables: tuple[Tensor, ...]
    """One for all blocks, or one each; [B or 1, H or 1, N, 2D], sines and cosines, the prefix not rotated."""
    half: bool
    rule: RotaryRule = field(default_factory=RotaryRule)
    counts: Tensor | None = None
    """[B, N]: the size of each input, which is 0 for padding, where each image has its own grid; None: all
    have one."""

    @classmethod
    def of(cls, tables: Sequence[Tensor], num_prefix: int, half: bool, rule: RotaryRule) -> "Rotary":
        """From tables of the patches alone, one for all blocks or one each: [N - prefix, 2D], or with heads,
        or with images and heads before it."""
        padded = (_with_prefix(table[(None,) * (4 - table.ndim)], num_prefix) for table in tables)
        return cls(tuple(padded), half, rule)

    def start(self, state: TokenState) -> TokenState:
        """The state before the first block, with what has to travel with its tokens. Raises ConfigError for a
        rule that needs one grid where each image has its own."""
        batch, num_tokens = state.size.shape
        match self.rule.name:
            case "mean_rotation" if self._shared:
                travels = Carried(self.tables[0].transpose(1, 2).expand(batch, -1, -1, -1), "mean")
            case "mean_coordinate":
                if self.counts is not None:
                    raise ConfigError(
                        "rotary positions by 'mean_coordinate' need one grid for all images; give "
                        "'mean_rotation'"
                    )
                travels = Carried(_coordinates(state).expand(batch, -1, -1), "mean")
            case "destination":
                travels = Carried(rows_of(batch, num_tokens, state.tokens.device), "first")
            case _:
                return state
        return replace(state, carried={**state.carried, ROPE: travels})

    def averaged(self, state: TokenState, block: int) -> Tensor | None:
        """[B, M, ...]: what a merge averages of the positions that block number `block` reads; None where it
        averages nothing of them."""
        if self.rule.name == "mean_coordinate" or (self.rule.name == "mean_rotation" and self._shared):
            return state.carried[ROPE].values
        if self.rule.name != "mean_rotation":
            return None
        table = self._table(block).expand(state.tokens.shape[0], -1, -1, -1).transpose(1, 2)
        return _mean_of_members(table, state.merges, self.counts) if state.merges else table

    def at(self, state: TokenState, block: int, probe: Tensor | None = None) -> Rope:
        """The rotations of the state's tokens in block number `block`. probe: added to what is `averaged`."""
        table, merged = self._table(block), bool(state.merges)
        if not merged and probe is None:
            return Rope(table, self.half)
        match self.rule.name:
            case "virtual_unmerging":
                return Rope(table, self.half, rows=slot_rows(state.merges), counts=self.counts)
            case "destination":
                rows = state.carried[ROPE].values
                return Rope(unmerged(table.expand(rows.shape[0], -1, -1, -1), rows), self.half)
        values = self.averaged(state, block)
        assert values is not None
        values = values if probe is None else values + probe
        if self.rule.name == "mean_coordinate":
            return Rope(_table_at(table, values, state), self.half)
        return Rope(values.transpose(1, 2), self.half, self.rule.bias and merged)

    def _table(self, block: int) -> Tensor:
        return self.tables[0 if len(self.tables) == 1 else block]

    @property
    def _shared(self) -> bool:
        """Whether one table without heads holds for all blocks, so that it can travel with the tokens."""
        return len(self.tables) == 1 and self.tables[0].shape[1] == 1


def _with_prefix(table: Tensor, num_prefix: int) -> Tensor:
    """The table with rows in front that rotate nothing: sine 0, cosine 1."""
    sine, cosine = table[..., :1, :].chunk(2, dim=-1)
    still = torch.cat([torch.zeros_like(sine), torch.ones_like(cosine)], dim=-1)
    return torch.cat([still.expand(-1, -1, num_prefix, -1), table], dim=-2)


def _mean_of_members(values: Tensor, merges: Sequence[Assignment], counts: Tensor | None) -> Tensor:
    """[B, M, ...]: the mean over each token's members of values [B, N, ...], as the tokens are means of them.
    counts: see `Rotary`."""
    if not all(merge.by_size for merge in merges):
        return replay(values, merges, counts)
    return mean_by_rows(values, slot_rows(merges), merges[-1].keep.shape[1], counts)


def _coordinates(state: TokenState) -> Tensor:
    """[1, N, 2]: row and column of each patch; 0 for the prefix."""
    (height, width), device = state.grid, state.tokens.device
    rows = torch.arange(height, device=device).repeat_interleave(width)
    columns = torch.arange(width, device=device).repeat(height)
    return F.pad(torch.stack([rows, columns], dim=-1), (0, 0, state.num_prefix, 0))[None].to(state.size.dtype)


def _table_at(table: Tensor, coordinates: Tensor, state: TokenState) -> Tensor:
    """[B, H or 1, M, 2D]: the table at coordinates [B, M, 2] of the state's tokens, as angles are linear in
    them.

    The slopes are read from neighbours in the table, so that any library's rotary positions will do.
    """
    (height, width), prefix = state.grid, state.num_prefix
    patches = table[0, :, prefix:].unflatten(1, (height, width))
    sine, cosine = patches.double().chunk(2, dim=-1)
    origin = torch.complex(cosine[:, :1, :1], sine[:, :1, :1])
    down = _step(origin, sine[:, 1:2, :1], cosine[:, 1:2, :1])
    right = _step(origin, sine[:, :1, 1:2], cosine[:, :1, 1:2])
    row, column = coordinates.double()[:, None, :, :, None].unbind(dim=3)
    angle = origin.angle()[:, 0] + row * down[:, 0] + column * right[:, 0]
    merged = torch.cat([angle.sin(), angle.cos()], dim=-1).to(table.dtype)
    return torch.cat([table[:, :, :prefix].expand(merged.shape[0], -1, -1, -1), merged[:, :, prefix:]], dim=2)


def _step(origin: Tensor, sine: Tensor, cosine: Tensor) -> Tensor:
    """The angle from the origin to its neighbour; 0 where it has none."""
    if sine.numel() == 0:
        return torch.zeros_like(origin.real)
    return (torch.complex(cosine, sine) * origin.conj()).angle()


def unmerged(x: Tensor, rows: Tensor) -> Tensor:
    """[B, H, K, D]: rows [B, K] of x [B, H, M, D], as rows of the flattened batch."""
    return take_rows(x.transpose(1, 2), rows).transpose(1, 2)


def mean_by_rows(x: Tensor, rows: Tensor, num_slots: int, counts: Tensor | None) -> Tensor:
    """[B, M, ...]: the mean of x [B, N, ...] over the input positions of each token, in x's dtype; 0 for a
    token without any, as relaxed merges leave them. rows [B, N]: see `slot_rows`; counts: see `Rotary`."""
    exact = widened(x)
    weight = exact.new_ones(rows.shape) if counts is None else counts.to(exact.dtype)
    exact = exact if counts is None else exact * per_row(weight, exact)
    total = add_rows(exact.new_zeros(x.shape[0], num_slots, *x.shape[2:]), rows, exact)
    whole = add_rows(weight.new_zeros(x.shape[0], num_slots), rows, weight)
    return quotient(total, whole.clamp(min=SMALLEST)).to(x.dtype)
