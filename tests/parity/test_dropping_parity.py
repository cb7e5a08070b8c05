"""GTP-ViT and vid-TLDR against their definitions, an image at a time, with all of the attention in memory."""

import torch
from tiny import images, tiny_vit

R = [9, 0, 7]


def attended(block, x, size):
    """Tokens [M, C] after a block's attention, in which keys count by size [M], and the attention [H, M, M]
    in which they count once."""
    attn, read = block.attn, block.norm1(x)
    q, k, v = attn.qkv(read).view(len(x), 3, attn.num_heads, -1).permute(1, 2, 0, 3)
    logits = q @ k.mT * attn.scale
    mixed = (logits + size.log()).softmax(dim=-1) @ v
    return x + attn.proj(mixed.transpose(0, 1).flatten(1)), logits.softmax(dim=-1)


def fed_forward(block, x):
    return x + block.mlp(block.norm2(x))


def graph_of(patches, side, neighbours):
    """D^-1/2 A D^-1/2, where row i of A has the patches that touch patch i, and those most like it."""
    count = len(patches)
    adjacent = torch.zeros(count, count, dtype=torch.float64)
    alike = torch.cosine_similarity(patches[:, None], patches[None], dim=-1)
    for i in range(count):
        others = sorted((j for j in range(count) if j != i), key=lambda j, i=i: -alike[i, j].item())
        for j in range(count):
            touches = max(abs(i // side - j // side), abs(i % side - j % side)) == 1
            adjacent[i, j] = touches or j in others[:neighbours]
    root = adjacent.sum(dim=1).sqrt()
    return adjacent / root[:, None] / root


@torch.no_grad()
def test_gtp_is_its_definition():
    """Without scales of tokens, as the authors have it by default."""
    model = tiny_vit("gtp", reduction=R, proportional_attention="never").eval().double()
    batch = images().double()
    found, (embedded, grid) = model(batch).final, model._embed(batch)
    for x, own in zip(embedded, found.tokens, strict=True):
        weights, ones = graph_of(x[1:], grid[1], 8), torch.ones(65, dtype=torch.float64)
        for block, r in zip(model.blocks, R, strict=True):
            x, attention = attended(block, x, ones[: len(x)])
            to_self = attention.diagonal(dim1=1, dim2=2).amax(dim=0)
            order = (to_self * attention.sum(dim=1).amax(dim=0))[1:].argsort()
            gone, kept = order[:r], order[r:].sort().values
            x = torch.cat([x[:1], x[1:][kept] + 0.1 * weights[kept][:, gone] @ x[1:][gone]])
            weights = weights[kept][:, kept]
            x = fed_forward(block, x)
        torch.testing.assert_close(own, model.norm(x), atol=1e-9, rtol=0)


@torch.no_grad()
def test_vid_tldr_is_its_definition():
    """Without a class token, as the authors' model has none."""
    model = tiny_vit("vid_tldr", reduction=R, prefix="no prefix, average pooling").eval().double()
    batch = images().double()
    found, (embedded, _) = model(batch).final, model._embed(batch)
    for x, own, own_size in zip(embedded, found.tokens, found.size, strict=True):
        size = torch.ones(len(x), dtype=torch.float64)
        for block, r in zip(model.blocks, R, strict=True):
            x, attention = attended(block, x, size)
            if r:
                mean = attention.mean(dim=0)
                sharp = (mean * mean.log()).sum(dim=-1)
                sharp = (sharp - sharp.min()) / (sharp.max() - sharp.min())
                salient = (sharp - sharp.mean()).clamp(min=0) / (sharp - sharp.mean()).max()
                unit = x / x.norm(dim=-1, keepdim=True)
                best, target = (unit[::2] @ unit[1::2].mT).max(dim=-1)
                order = best.argsort(descending=True)
                total, mass = x * size[:, None], size.clone()
                for source in (2 * order[:r]).tolist():
                    slot, part = 2 * int(target[source // 2]) + 1, salient[source]
                    total[slot] += part * x[source] * size[source]
                    mass[slot] += part * size[source]
                stays = torch.cat([2 * order[r:].sort().values, torch.arange(1, len(x), 2)])
                x, size = (total / mass[:, None])[stays], mass[stays]
            x = fed_forward(block, x)
        torch.testing.assert_close(own, model.norm(x), atol=1e-9, rtol=0)
        torch.testing.assert_close(own_size, size, atol=1e-9, rtol=0)
