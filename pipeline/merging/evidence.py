"""The evidence by which a policy chooses which tokens merge. A value is computed when it is first read.

B batch, M tokens, C channels, H heads, D channels of a head, F of the metric embedding.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipeline.token_state import widened

CHUNK = 1 << 22
"""Number of logits in memory at once when attention is summed up."""


class Evidence:
    """One block's tokens and attention, right before its merge; each value is computed once.

    tokens [B, M, C]: input of the attention, after the block's first norm. q, k [B, H, M, D]: its queries and
    keys, as in its logits. keys [B, H, M, D]: the keys before rotary positions; None: the same. scale: factor
    of the logits. size [B, M]: how often each key counts; None: once. embed: the block's learned embedding,
    which maps [B, M, C] to [B, M, F]; None where it has none.
    """

    def __init__(
        self,
        tokens: Tensor,
        q: Tensor,
        k: Tensor,
        *,
        scale: float,
        keys: Tensor | None = None,
        size: Tensor | None = None,
        embed: Callable[[Tensor], Tensor] | None = None,
    ):
        self.tokens, self._q, self._k = tokens, q, k
        self._keys = k if keys is None else keys
        self._scale, self._size, self._embed = scale, size, embed
        self._known: dict[str, Any] = {}

    @property
    def keys(self) -> Tensor:
        """[B, M, D]: the mean over heads of the attention's keys, before rotary positions."""
        return self._once("keys", lambda: self._keys.mean(dim=1))

    @property
    def embedding(self) -> Tensor:
        """[B, M, F]: the learned embedding. Its input is detached, so it never changes the backbone's
        features."""
        assert self._embed is not None, "the policy does not say that it needs 'embedding'"
        embed = self._embed
        return self._once("embedding", lambda: embed(self.tokens.detach()))

    @property
    def received(self) -> Tensor:
        """[B, H, M], float32 or wider: the attention that each token receives, summed over all queries. It
        has no gradient, and neither has the other attention."""
        return self._attention[0]

    @property
    def entropy(self) -> Tensor:
        """[B, H, M], float32 or wider: the entropy of each query's attention, in nats."""
        return self._attention[1]

    @torch.no_grad()
    def attention_from(self, query: int) -> Tensor:
        """[B, H, M], float32 or wider: the attention of one query, 0 for the class token, to each token."""
        return self._logits(slice(query, query + 1)).softmax(dim=-1)[:, :, 0]

    @property
    def _attention(self) -> tuple[Tensor, Tensor]:
        return self._once("attention", self._sum_up)

    @torch.no_grad()
    def _sum_up(self) -> tuple[Tensor, Tensor]:
        """`received` and `entropy`, in chunks of queries, so that [B, H, M, M] is never in memory."""
        batch, heads, num_tokens, _ = self._q.shape
        step = max(1, CHUNK // max(1, batch * heads * num_tokens))
        received, entropies = 0, []
        for first in range(0, num_tokens, step):
            log_weights = self._logits(slice(first, first + step)).log_softmax(dim=-1)
            weights = log_weights.exp()
            received = received + weights.sum(dim=2)
            # a key of size 0 has weight 0, and 0 * -inf would be nan
            entropies.append(-(weights * log_weights.clamp(min=torch.finfo(weights.dtype).min)).sum(dim=-1))
        assert isinstance(received, Tensor)
        return received, torch.cat(entropies, dim=-1)

    def _logits(self, queries: slice) -> Tensor:
        """[B, H, queries, M]"""
        logits = widened(self._q[:, :, queries]) @ widened(self._k).mT * self._scale
        return logits if self._size is None else logits + self._size.log()[:, None, None]

    def _once(self, name: str, compute: Callable[[], Any]) -> Any:
        """The value, computed at the first call. torch.compile does not follow functools.cached_property."""
        if name not in self._known:
            self._known[name] = compute()
        return self._known[name]
