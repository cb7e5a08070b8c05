"""From a token state to one vector per image."""

from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.token_state import TokenState


def pool(state: TokenState, kind: str) -> Tensor:
    """[B, C]. `token`: the first prefix token. `avg`: the mean over patches, so each token counts by its size."""
    if kind == "token":
        if state.num_prefix == 0:
            raise ConfigError("pooling 'token' needs a class token, and this backbone has none; use pool='avg'")
        return state.tokens[:, 0]
    if kind == "avg":
        size = state.patch_size[..., None]
        return ((state.patch_tokens * size).sum(dim=1) / size.sum(dim=1)).to(state.tokens.dtype)
    raise ConfigError(f"pooling is '{kind}'; give 'token' or 'avg'")
