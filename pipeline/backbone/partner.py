"""Labels that follow the tokens of mixed images (TL-Align, Xiao et al., ICCV 2023).

Cutmix labels an image by the pixels that it has of another one, its partner. What a head reads behind the
last block is another mixture, as attention and merges have moved the tokens. So the label moves with them: an
attention gives each token the mean over heads of what it attends to, the residual connection its own again,
half each, and a merge averages as it averages the tokens. The paper moves a distribution over K classes with
each token. All of this is linear, so one number is enough: how much of a token is the partner's. With y and
y' for the labels of an image and of its partner, the label of a token is (1 - number) y + number y'.

It is the partner's number, and not the image's own, since attention to zeros is zero exactly, while weights
add up to one up to rounding: a label stays as it is where nothing was mixed. B batch, M tokens, grid (h, w).
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from pipeline.backbone.attention import Mixed, Place
from pipeline.errors import ConfigError
from pipeline.token_state import PARTNER, Carried, TokenState


def start_partner(parts: Tensor, num_prefix: int) -> Mapping[str, Carried]:
    """What tokens carry from the start, for `MergingViT.forward`: of a patch the partner's part, [B, h, w] in
    [0, 1], and of a prefix token the mean over patches."""
    patches = parts.flatten(1)
    prefix = patches.mean(dim=1, keepdim=True).expand(-1, num_prefix)
    return {PARTNER: Carried(torch.cat([prefix, patches], dim=1), "mean")}


def partner_of(state: TokenState) -> Tensor:
    """[B, M] in [0, 1], without gradient: how much of each token is the partner's. Raises ConfigError where
    the tokens do not carry it."""
    if PARTNER not in state.carried:
        raise ConfigError(
            "labels follow the tokens (data.augment.mix_labels='tokens'), and these tokens carry none; an "
            "objective of your own calls model.encode_batch(batch), or passes carried=task.carried(batch)"
        )
    return state.carried[PARTNER].values.detach()


def following(place: Place, state: TokenState) -> Place:
    """The place of tokens whose labels follow them, where they do."""
    return replace(place, partner=partner_of(state)) if PARTNER in state.carried else place


def followed(state: TokenState, mixed: Mixed) -> TokenState:
    """The state whose labels have followed an attention: those of the tokens that attended."""
    if PARTNER not in state.carried:
        return state
    assert mixed.partner is not None, "every host's attention is `mix`"
    own = partner_of(state)[:, : mixed.partner.shape[1]]
    moved = replace(state.carried[PARTNER], values=(own + mixed.partner) / 2)
    return replace(state, carried={**state.carried, PARTNER: moved})
