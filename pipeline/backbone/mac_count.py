"""What is said of a backbone's multiply-accumulates (MACs)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class MacCount:
    """MACs of one image. `total` is the sum of embed (patch embedding), blocks and metric."""

    total: int
    embed: int
    blocks: tuple[int, ...]
    """MACs of attention and MLP of each block."""
    metric: tuple[int, ...]
    """MACs of what the policy needs in each block: metric embedding, similarities, logits of attention; in
    the first one also of what travels with the tokens."""
    tokens: tuple[int, ...]
    """Tokens left after each block, prefix included."""

    @property
    def flops(self) -> int:
        return 2 * self.total
