"""TokenMixup (Choi, Choi & Kim, NeurIPS 2022): tokens are mixed inside of the model, guided by its attention.

Horizontal: behind a block an image gets the tokens of another image, its partner, at the places where those
are more salient than its own. Partners are chosen so that what all images of the batch win is the largest
possible, and an image that the model does not know yet stays as it is. Vertical: the tokens of a block also
attend to the most salient tokens that entered each earlier block. Both come before the first reduction, where
a token is one patch; and only in passes of training.

Ours: images keep their places in the batch (the authors put mixed ones first), and what a pass keeps belongs
to that pass. B batch, N patches, M tokens with the prefix, C channels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.backbone.assignment import largest_assignment
from pipeline.backbone.attention import Place
from pipeline.backbone.saliency import without_saliency
from pipeline.errors import ConfigError
from pipeline.merging.policy import MergePolicy
from pipeline.token_state import ROPE, Carried, TokenMix, TokenState

CHUNK = 1 << 22
"""Number of differences of saliency in memory at once."""


@dataclass(frozen=True)
class Horizontal:
    """layer: the block behind which images are mixed. margin: by how much a partner's token has to be more
    salient, 0 or more. easy: the largest difficulty of an image that is mixed."""

    layer: int
    margin: float
    easy: float


@dataclass(frozen=True)
class Vertical:
    """layer: the block that attends to tokens of earlier ones. keep: how many of each."""

    layer: int
    keep: int


@dataclass(frozen=True)
class TokenMixing:
    """saliency: one of `pipeline.backbone.saliency.SALIENCIES`. difficulty: maps the state behind the
    horizontal layer to the loss [B] float32 of a small head, with gradient."""

    saliency: str
    horizontal: Horizontal | None = None
    vertical: Vertical | None = None
    difficulty: Callable[[TokenState], Tensor] | None = None

    def keeps(self, block: int) -> bool:
        """Whether tokens that enter this block are kept."""
        return self.vertical is not None and block < self.vertical.layer

    def mixes(self, block: int) -> bool:
        """Whether images are mixed behind this block."""
        return self.horizontal is not None and block == self.horizontal.layer

    def check_schedule(self, schedule: Sequence[int], policy: MergePolicy) -> None:
        """Raises ConfigError where tokens merge before they are mixed. schedule: r of each block."""
        needed = 0 if self.horizontal is None else self.horizontal.layer + 1
        if self.vertical is not None:
            needed = max(needed, self.vertical.layer + int(policy.ahead or policy.at_entry))
        early = [block for block, r in enumerate(schedule[:needed]) if r]
        if early:
            numbers = ", ".join(["0"] * needed + ["..."])
            raise ConfigError(
                f"token_mixup mixes tokens that have not merged, and block {early[0]} merges before; give a "
                f"reduction per block that begins with [{numbers}], or a smaller layer of token_mixup"
            )


class TokenMixer:
    """The mixing of one pass: it looks at each block, before and behind it. mix: what became of the images,
    once they were mixed."""

    def __init__(self, mixing: TokenMixing, schedule: Sequence[int], policy: MergePolicy):
        """Raises ConfigError where tokens merge before they are mixed."""
        mixing.check_schedule(schedule, policy)
        self.mix: TokenMix | None = None
        self._mixing, self._kept = mixing, list[Tensor]()

    def place(self, block: int, place: Place) -> Place:
        """The place of the block's tokens."""
        mixing = self._mixing
        if mixing.vertical is not None and block == mixing.vertical.layer:
            place = replace(place, extra=torch.cat(self._kept, dim=1))
        reads = mixing.keeps(block) or mixing.mixes(block)
        return replace(place, salient=mixing.saliency) if reads else place

    def behind(self, block: int, entered: TokenState, left: TokenState) -> TokenState:
        """The state with which the next block goes on. entered, left: those before and behind this one."""
        mixing = self._mixing
        if not (mixing.keeps(block) or mixing.mixes(block)):
            return left
        saliency, left = without_saliency(left)
        if mixing.keeps(block):
            assert mixing.vertical is not None
            self._kept.append(most_salient(entered, saliency, mixing.vertical.keep))
        if mixing.mixes(block):
            assert mixing.horizontal is not None and mixing.difficulty is not None
            left, self.mix = mix_across(left, saliency, mixing.horizontal, mixing.difficulty(left))
        return left


def most_salient(state: TokenState, saliency: Tensor, keep: int) -> Tensor:
    """[B, keep, C]: the patches of the state with the largest saliency [B, N], the largest first. Raises
    ConfigError where there are not as many."""
    patches = state.patch_tokens
    if keep > patches.shape[1]:
        raise ConfigError(
            f"token_mixup.vertical keeps {keep} tokens of each block, and an image has {patches.shape[1]} "
            "patches; keep fewer"
        )
    best = saliency.topk(keep, dim=1).indices
    return patches.gather(1, best[..., None].expand(-1, -1, patches.shape[2]))


def mix_across(
    state: TokenState, saliency: Tensor, how: Horizontal, difficulty: Tensor
) -> tuple[TokenState, TokenMix]:
    """The state whose images got tokens of their partners, and what became of them. saliency [B, N], of the
    patches; difficulty [B]."""
    partner, taken = matched(saliency, difficulty.detach() <= how.easy, how.margin)
    share = label_share(saliency, partner, taken)
    return exchanged(state, partner, taken), TokenMix(partner, share, taken.float().mean(1), difficulty)


@torch.no_grad()
def matched(saliency: Tensor, easy: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """The partner of each image, int64 [B], and whether it gets the partner's patch at each place, bool
    [B, N]: where that is more salient by more than the margin. saliency [B, N]; easy [B] bool: which images
    are mixed. Any image may be a partner, of one image at most.

    Images that are not easy win nothing in the assignment, so their columns are free for the others.
    """
    own = torch.arange(len(saliency), device=saliency.device)
    won = torch.where(easy[:, None], gains(saliency, margin), 0.0)
    partner = torch.where(easy, largest_assignment(won), own)
    return partner, (saliency[partner] - saliency > margin) & easy[:, None]


def gains(saliency: Tensor, margin: float) -> Tensor:
    """[B, B]: what each image, a row, wins by each partner: the sum over places of how much more salient
    the partner's patch is, beyond the margin. saliency [B, N]."""
    batch, places = saliency.shape
    rows = max(1, CHUNK // (batch * places))
    parts = [
        (saliency[None] - some[:, None] - margin).clamp(min=0).sum(dim=-1) for some in saliency.split(rows)
    ]
    return torch.cat(parts)


@torch.no_grad()
def label_share(saliency: Tensor, partner: Tensor, taken: Tensor) -> Tensor:
    """[B] in [0, 1]: the partner's share of the label, by the saliency [B, N] of the patches that an image
    has in the end. Exactly 0 where none is the partner's."""
    given = torch.where(taken, saliency[partner], 0.0).sum(dim=1)
    kept = torch.where(taken, 0.0, saliency).sum(dim=1)
    return given / (given + kept).clamp(min=torch.finfo(given.dtype).tiny)


def exchanged(state: TokenState, partner: Tensor, taken: Tensor) -> TokenState:
    """The state with the partner's patches, and what they carry, where these are taken, bool [B, N]. The
    prefix stays, to the bit. partner int64 [B]."""
    prefix = taken.new_zeros(len(taken), state.num_prefix)
    everywhere = torch.cat([prefix, taken], dim=1)
    carried = {
        # positions are those of places, which all images share
        name: item if name == ROPE else _exchanged(item, partner, everywhere)
        for name, item in state.carried.items()
    }
    tokens = torch.where(everywhere[..., None], state.tokens[partner], state.tokens)
    return replace(state, tokens=tokens, carried=carried)


def _exchanged(item: Carried, partner: Tensor, taken: Tensor) -> Carried:
    """Values between two tokens of one image are that image's; between tokens of two images, the mean."""
    own, other = item.values, item.values[partner]
    if item.rule == "pairwise":
        part = taken.to(own.dtype)
        return replace(item, values=own.lerp(other, (part[:, :, None] + part[:, None]) / 2))
    shape = (*taken.shape, *[1] * (own.ndim - 2))
    return replace(item, values=torch.where(taken.view(shape), other, own))
