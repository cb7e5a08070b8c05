"""What DTEM and ToMe compute, written from their equations as plainly as can be, for one image at a time.

Nothing of the pipeline is used here. A timm VisionTransformer gives the weights, and `metrics` one linear
layer per block (None for ToMe, whose metric is the mean of the keys). N tokens, C channels, H heads, D
channels per head; p prefix tokens; in the dtype of the weights. Each merge chooses. `Margin` keeps how near a
choice was to another one.
"""

import torch
from torch import Tensor, nn

EPS = 2.0**-23


class Margin:
    """least: the smallest difference of two scores that decided a choice, so far."""

    def __init__(self) -> None:
        self.least = float("inf")

    def between(self, ranked: Tensor, chosen: int) -> None:
        """ranked [..., n], descending: the first `chosen` of them were chosen."""
        if 0 < chosen < ranked.shape[-1]:
            self.least = min(self.least, (ranked[..., chosen - 1] - ranked[..., chosen]).min().item())


def train_forward(
    vit: nn.Module, metrics: list[nn.Linear], images: Tensor, r: int
) -> tuple[Tensor, Tensor, int]:
    """DTEM's soft merge with odd positions as sources and tokens in the order of their sizes: tokens [B, N,
    C], size [B, N], live ones."""
    results = []
    for x in _embed(vit, images):
        size, live = x.new_ones(len(x)), len(x)
        for block, metric in zip(vit.blocks, metrics, strict=True):
            x, size, live = train_block(block, metric, x, size, live, r)
        results.append((vit.norm(x), size))
    return torch.stack([x for x, _ in results]), torch.stack([size for _, size in results]), live


def train_block(
    block: nn.Module,
    metric: nn.Linear,
    x: Tensor,
    size: Tensor,
    live: int,
    r: int,
    margin: Margin | None = None,
) -> tuple[Tensor, Tensor, int]:
    y = block.norm1(x)
    mixed, _ = attention(block.attn, y, size)
    x = x + block.ls1(mixed)
    x, size, live = soft_merge(x, size, live, metric(y.detach()), r, margin)
    return x + block.ls2(block.mlp(block.norm2(x))), size, live


def eval_forward(
    vit: nn.Module, metrics: list[nn.Linear] | None, images: Tensor, r: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The hard merge: tokens [B, M, C], size [B, M], and the token [B, N] that each input position is in."""
    results = []
    prefix = vit.num_prefix_tokens
    for x in _embed(vit, images):
        size, holds = x.new_ones(len(x)), [[i] for i in range(len(x))]
        for i, block in enumerate(vit.blocks):
            x, size, holds = eval_block(block, metrics and metrics[i], x, size, holds, r, prefix)
        results.append((vit.norm(x), size, slots(holds)))
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True))


def eval_block(
    block: nn.Module,
    metric: nn.Linear | None,
    x: Tensor,
    size: Tensor,
    holds: list[list[int]],
    r: int,
    prefix: int,
    margin: Margin | None = None,
) -> tuple[Tensor, Tensor, list[list[int]]]:
    """holds: of each token, the input positions in it."""
    y = block.norm1(x)
    mixed, keys = attention(block.attn, y, size)
    x = x + block.ls1(mixed)
    vectors = keys.mean(0) if metric is None else metric(y)
    x, size, holds = hard_merge(x, size, holds, vectors, r, prefix, margin)
    return x + block.ls2(block.mlp(block.norm2(x))), size, holds


def slots(holds: list[list[int]]) -> Tensor:
    """[N]: the token that each input position is in."""
    where = {position: token for token, group in enumerate(holds) for position in group}
    return torch.tensor([where[i] for i in range(len(where))])


def _embed(vit: nn.Module, images: Tensor) -> Tensor:
    return vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))


def attention(attn: nn.Module, y: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """y [N, C], size [N] -> [N, C] and the keys [H, N, D]; a_ij = exp(l_ij - max_j l_ij) size_j, over its
    sum."""
    q, k, v = (
        part.unflatten(1, (attn.num_heads, attn.head_dim)).transpose(0, 1)
        for part in attn.qkv(y).chunk(3, dim=1)
    )
    q, k = attn.q_norm(q), attn.k_norm(k)
    logits = (q * attn.head_dim**-0.5) @ k.transpose(1, 2)
    weights = torch.exp(logits - logits.max(dim=-1, keepdim=True).values) * size
    mixed = weights / weights.sum(dim=-1, keepdim=True) @ v
    return attn.proj(mixed.transpose(0, 1).flatten(1)), k


def soft_merge(
    x: Tensor, size: Tensor, live: int, metric: Tensor, r: int, margin: Margin | None = None
) -> tuple[Tensor, Tensor, int]:
    """With one prefix token. A: positions 1, 3, 5, ...; B: 2, 4, 6, ..., both below `live`."""
    r = min(r, (live - 1) // 2)
    if r <= 0:
        return x, size, live
    scores = release_scores(metric, live)
    if margin:
        margin.between(scores.sort(dim=1, descending=True).values, 3)
    return move(x, size, live, soft_weights(scores, r), r)


def release_scores(metric: Tensor, live: int) -> Tensor:
    """[Na, Nb]: cosines of A and B."""
    unit = metric / metric.norm(dim=-1, keepdim=True)
    return unit[1:live:2] @ unit[2:live:2].T


def move(x: Tensor, size: Tensor, live: int, weights: Tensor, r: int) -> tuple[Tensor, Tensor, int]:
    """weights [Na, Nb]: the share of each A-token that goes to each B-token."""
    a, b = torch.arange(1, live, 2), torch.arange(2, live, 2)
    merged_size = size[b] + (weights.T @ size[a][:, None])[:, 0]
    merged = (size[b][:, None] * x[b] + weights.T @ (size[a][:, None] * x[a])) / merged_size[:, None]
    left = 1 - weights.sum(dim=1)
    left = left + (left.clamp(0, 1) - left).detach()

    new = torch.cat([x[a], merged])
    new_size = torch.cat([size[a] * left, merged_size])
    order = torch.argsort(new_size, descending=True, stable=True)
    return (
        torch.cat([x[:1], new[order], x[live:]]),
        torch.cat([size[:1], new_size[order], size[live:]]),
        live - r,
    )


def soft_weights(scores: Tensor, r: int, k2: int = 3, tau1: float = 0.1, tau2: float = 0.1) -> Tensor:
    """scores [Na, Nb] -> W [Na, Nb]."""
    columns = torch.argsort(scores, dim=1, descending=True)[:, :k2]
    z = scores.gather(1, columns) / tau1
    chosen = torch.zeros_like(z)
    for _ in range(r):
        p = torch.softmax((z / tau2).reshape(-1), dim=0).reshape(z.shape)
        chosen = chosen + p
        z = z + torch.log(torch.clamp(1 - p.sum(dim=1, keepdim=True), min=EPS))
    clipped = chosen / torch.clamp(chosen.sum(dim=1, keepdim=True).detach(), min=1)
    return torch.zeros_like(scores).scatter(1, columns, clipped)


def hard_merge(
    x: Tensor,
    size: Tensor,
    holds: list[list[int]],
    metric: Tensor,
    r: int,
    prefix: int,
    margin: Margin | None = None,
) -> tuple[Tensor, Tensor, list[list[int]]]:
    """A: even positions, B: odd ones, the prefix in neither. The r A-tokens with the best partner go; order:
    prefix, A left, B."""
    r = min(r, (len(x) - prefix) // 2)
    a = [i for i in range(prefix, len(x)) if i % 2 == 0]
    b = [i for i in range(prefix, len(x)) if i % 2 == 1]
    unit = metric / metric.norm(dim=-1, keepdim=True)
    similarity = unit @ unit.T
    scores = similarity.tolist()
    partner = {i: max(b, key=lambda j: scores[i][j]) for i in a}
    leaving = sorted(a, key=lambda i: scores[i][partner[i]], reverse=True)[:r]
    if margin:
        ranked = similarity[a][:, b].sort(dim=1, descending=True).values
        margin.between(ranked, 1)
        margin.between(ranked[:, 0].sort(descending=True).values, r)

    order = [*range(prefix), *(i for i in a if i not in leaving), *b]
    groups = [[i, *(j for j in leaving if partner[j] == i)] for i in order]
    new_size = torch.stack([size[group].sum() for group in groups])
    new = torch.stack([(size[group][:, None] * x[group]).sum(0) for group in groups]) / new_size[:, None]
    return new, new_size, [[position for i in group for position in holds[i]] for group in groups]
