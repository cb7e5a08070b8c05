"""A LeMeViT of a few thousand weights."""

from typing import Any

import torch
from tiny import IMG, SEED

from pipeline import build_backbone
from pipeline.backbone.lemevit.model import LeMeViT

LEMEVIT: dict[str, Any] = {
    "depths": [1, 2, 1, 1, 2],
    "widths": [16, 16, 24, 32, 40],
    "head_dim": 8,
    "num_meta": 4,
}
"""Options: seven blocks in stages of 16x16, 16x16, 8x8, 4x4 and 2x2 patches, of images of 64 pixels."""
ENDS = [0, 2, 3, 4, 6]
"""The last block of each stage."""


def tiny_lemevit(*, seed: int = 0, img_size: int = IMG, spread: float = 0.1, **options: Any) -> LeMeViT:
    """With weights that are large enough for tokens to differ, and statistics that are not those of the
    start. options: of the size, and drop_path or grad_checkpointing."""
    outer = {name: options.pop(name) for name in ("drop_path", "grad_checkpointing") if name in options}
    torch.manual_seed(SEED + seed)
    model = build_backbone("lemevit_tiny", img_size=img_size, timm_options=LEMEVIT | options, **outer)
    assert isinstance(model, LeMeViT)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.add_(torch.rand_like(buffer))
    return model.eval()


def tiny_section() -> dict[str, Any]:
    """The section of a config."""
    return {"name": "lemevit_tiny", "img_size": IMG, "options": LEMEVIT}
