"""Pooling: one vector per image from a token state."""

from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.token_state import TokenState

POOLS = ("token", "avg", "both")


def check_pool(kind: str, num_prefix: int) -> None:
    """Raises ConfigError for a kind that `pool` does not have, or that needs a prefix token where there is
    none."""
    if kind not in POOLS:
        raise ConfigError(
            f"pooling is '{kind}'; give one of {', '.join(POOLS)}, as head.pool or as "
            "backbone.options.global_pool"
        )
    if kind != "avg" and num_prefix == 0:
        what = "a class token" if kind == "token" else "tokens before the patches"
        raise ConfigError(f"pooling '{kind}' needs {what}, and this backbone has none; use pool='avg'")


def pool(state: TokenState, kind: str) -> Tensor:
    """[B, C]: the first prefix token (`token`); the mean over patches (`avg`), in which each token counts by
    its size; or that and the mean over the prefix tokens, added (`both`). Raises ConfigError, see
    `check_pool`."""
    check_pool(kind, state.num_prefix)
    if kind == "token":
        return state.tokens[:, 0]
    size = state.patch_size[..., None]
    mean = ((state.patch_tokens * size).sum(dim=1) / size.sum(dim=1)).to(state.tokens.dtype)
    return mean + state.tokens[:, : state.num_prefix].mean(dim=1) if kind == "both" else mean
