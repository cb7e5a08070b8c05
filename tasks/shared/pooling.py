"""From a token state to one vector per image."""

from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.token_state import TokenState


def check_pool(kind: str, num_prefix: int) -> None:
    """Raises ConfigError for a way to pool that `pool` does not have, or not with so many prefix tokens."""
    if kind not in ("token", "avg"):
        raise ConfigError(
            f"pooling is '{kind}'; give 'token' or 'avg', as head.pool or as backbone.options.global_pool"
        )
    if kind == "token" and num_prefix == 0:
        raise ConfigError("pooling 'token' needs a class token, and this backbone has none; use pool='avg'")


def pool(state: TokenState, kind: str) -> Tensor:
    """[B, C]. `token`: the first prefix token. `avg`: the mean over patches, so each token counts by its
    size."""
    check_pool(kind, state.num_prefix)
    if kind == "token":
        return state.tokens[:, 0]
    size = state.patch_size[..., None]
    return ((state.patch_tokens * size).sum(dim=1) / size.sum(dim=1)).to(state.tokens.dtype)
