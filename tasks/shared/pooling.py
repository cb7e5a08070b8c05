"""Pooling: one vector per image from a token state."""

from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.token_state import TokenState


def check_pool(kind: str, num_prefix: int) -> None:
    """Raises ConfigError for a kind that `pool` does not have, or that needs a prefix token where there is
    none."""
    if kind not in ("token", "avg"):
        raise ConfigError(
            f"pooling is '{kind}'; give 'token' or 'avg', as head.pool or as backbone.options.global_pool"
        )
    if kind == "token" and num_prefix == 0:
        raise ConfigError("pooling 'token' needs a class token, and this backbone has none; use pool='avg'")


def pool(state: TokenState, kind: str) -> Tensor:
    """[B, C]: the first prefix token (`token`), or the mean over patches (`avg`), in which each token counts
    by its size. Raises ConfigError, see `check_pool`."""
    check_pool(kind, state.num_prefix)
    if kind == "token":
        return state.tokens[:, 0]
    size = state.patch_size[..., None]
    return ((state.patch_tokens * size).sum(dim=1) / size.sum(dim=1)).to(state.tokens.dtype)
