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
SMALLEST_NORM = 1e-8
"""What is added to a sum of norms, so that a token at which all heads say nothing has shares."""


class Evidence:
    """One block's tokens and attention, right before its merge; each value is computed once.

    tokens [B, M, C]: input of the attention, after the block's first norm. q, k [B, H, M, D]: its queries and
    keys, as in its logits. keys [B, H, M, D]: the keys before rotary positions; None: the same. scale: factor
    of the logits. size [B, M]: how often each key counts; None: once. bias [B, H, M]: what the logits of each
    key have more; None: nothing. embed: the block's learned embedding, which maps [B, M, C] to [B, M, F];
    None where it has none. depth: the share of the model's blocks that lie before this one, in [0, 1).
    outputs [B, H, M, D]: what each head says at each token, before the projection. threshold: gives the
    block's learned threshold, [1]; None where it has none.
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
        bias: Tensor | None = None,
        embed: Callable[[Tensor], Tensor] | None = None,
        depth: float = 0.0,
        outputs: Tensor | None = None,
        threshold: Callable[[], Tensor] | None = None,
    ):
        self.tokens, self._q, self._k = tokens, q, k
        self._keys = k if keys is None else keys
        self._scale, self._size, self._bias, self._embed = scale, size, bias, embed
        self.depth = depth
        self._outputs, self._threshold = outputs, threshold
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
        """[B, H, M], float32 or wider: the attention that each token receives, summed over all queries but
        those of size 0, which are padding. It has no gradient, and neither has the other attention."""
        return self._attention()[0]

    @property
    def entropy(self) -> Tensor:
        """[B, H, M], float32 or wider: the entropy of each query's attention, in nats. A policy that reads
        other attention too pays once, if it reads this first, as `merge` does."""
        return self._attention(entropy=True)[2]

    @property
    def own_attention(self) -> Tensor:
        """[B, H, M], float32 or wider: the attention of each token to itself."""
        return self._attention()[1]

    @property
    def class_attention(self) -> Tensor:
        """[B, H, M], float32 or wider: the attention of the first token, the class token, to each token."""
        return self._once("class_attention", lambda: self.attention_from(0))

    @property
    def mean_entropy(self) -> Tensor:
        """[B, M], float32 or wider: the entropy of each query's attention averaged over heads, in nats, where
        each key counts once whatever its size."""
        return self._once("mean_entropy", self._entropies_of_mean)

    @property
    def head_shares(self) -> Tensor:
        """[B, H, M], float32 or wider: the norm of what each head says at a token, as a share of that of all
        heads; without gradient."""
        return self._once("head_shares", self._shares_of_heads)

    @property
    def threshold(self) -> Tensor:
        """[1]: the block's learned threshold, for policies that mask (`MergePolicy.masks`), with gradient."""
        assert self._threshold is not None, "the policy does not say that it masks"
        return self._once("threshold", self._threshold)

    def attention_from(self, query: int) -> Tensor:
        """[B, H, M], float32 or wider: the attention of one query, 0 for the class token, to each token."""
        with torch.no_grad():
            return self._logits(slice(query, query + 1), self._size).softmax(dim=-1)[:, :, 0]

    def _shares_of_heads(self) -> Tensor:
        assert self._outputs is not None, "this evidence was made without outputs of heads"
        with torch.no_grad():
            norms = torch.linalg.vector_norm(widened(self._outputs), dim=-1)
            return norms / (norms.sum(dim=1, keepdim=True) + SMALLEST_NORM)

    def _attention(self, *, entropy: bool = False) -> tuple[Tensor, ...]:
        """`received`, `own_attention`, and `entropy` if asked for."""
        if entropy or "with entropy" in self._known:
            return self._once("with entropy", lambda: self._sum_up(entropy=True))
        return self._once("attention", lambda: self._sum_up(entropy=False))

    def _sum_up(self, *, entropy: bool) -> tuple[Tensor, ...]:
        received, own, entropies = 0, [], []
        for chunk in self._chunks():
            with torch.no_grad():  # as a decorator, torch.compile would not follow it
                logits = self._logits(chunk, self._size)
                weights = logits.softmax(dim=-1)
                received = received + self._of_live(weights, chunk).sum(dim=2)
                own.append(weights.diagonal(offset=chunk.start, dim1=-2, dim2=-1))
                if entropy:
                    # a key of size 0 has weight 0, and 0 * -inf would be nan
                    log_weights = logits.log_softmax(dim=-1).clamp(min=torch.finfo(weights.dtype).min)
                    entropies.append(-(weights * log_weights).sum(dim=-1))
        assert isinstance(received, Tensor)
        summed = received, torch.cat(own, dim=-1)
        return (*summed, torch.cat(entropies, dim=-1)) if entropy else summed

    def _entropies_of_mean(self) -> Tensor:
        entropies = []
        with torch.no_grad():
            once = None if self._size is None else (self._size > 0).to(self._size.dtype)
            for chunk in self._chunks():
                mean = self._logits(chunk, once).softmax(dim=-1).mean(dim=1)
                entropies.append(torch.special.entr(mean).sum(dim=-1))
        return torch.cat(entropies, dim=-1)

    def _chunks(self) -> list[slice]:
        """The queries in chunks, so that [B, H, M, M] is never in memory. A compiled or exported pass takes
        any batch, so there [H, M, M] is not."""
        batch, heads, num_tokens, _ = self._q.shape
        batch = 1 if torch.compiler.is_compiling() else batch
        step = max(1, CHUNK // max(1, batch * heads * num_tokens))
        return [slice(first, min(first + step, num_tokens)) for first in range(0, num_tokens, step)]

    def _of_live(self, weights: Tensor, queries: slice) -> Tensor:
        """Attention [B, H, queries, M], and none of padding."""
        if self._size is None:
            return weights
        return weights.masked_fill(self._size[:, None, queries, None] == 0, 0.0)

    def _logits(self, queries: slice, size: Tensor | None) -> Tensor:
        """[B, H, queries, M]. size [B, M]: how often each key counts; None: once."""
        logits = widened(self._q[:, :, queries]) @ widened(self._k).mT * self._scale
        logits = logits if self._bias is None else logits + self._bias[:, :, None]
        return logits if size is None else logits + size.log()[:, None, None]

    def _once(self, name: str, compute: Callable[[], Any]) -> Any:
        """The value, computed at the first call. torch.compile does not follow functools.cached_property."""
        if name not in self._known:
            self._known[name] = compute()
        return self._known[name]
