"""A captioner of a few thousand weights, its captions, and open_clip's CoCa with the same weights."""

from typing import Any

import torch
from tiny import SEED, images, tiny_vit
from torch import Tensor, nn

from pipeline.backbone.weights.load import load_weights
from pipeline.data.samples.text import build_tokenizer
from pipeline.data.targets import CaptionTargets
from pipeline.interfaces import Batch
from pipeline.model import TASKS, MultiTaskModel
from pipeline.objectives import OBJECTIVES

WORDS = ["a", "of", "two", "three", "red", "blue", "small", "large", "circle", "square", "on", "under", "the"]
LENGTH = 16
TOKENIZER: dict[str, Any] = {"type": "words", "words": WORDS, "context_length": LENGTH}
TOWER = {"width": 32, "heads": 2, "layers": 2}
VISION = {"image_size": 64, "patch_size": 8, "width": 48, "layers": 3, "head_width": 16}
POOLER = {"attentional_pool": True, "attn_pooler_queries": 6, "attn_pooler_heads": 2}
SPEC: dict[str, Any] = {
    "embed_dim": 32,
    "text_cfg": TOWER,
    "multimodal_cfg": TOWER,
    "vision_cfg": VISION | POOLER,
}
ROUTES = ("pooler", "direct")
CLIP_TOWER = "clip: norm before the blocks"
CAPTIONS = [
    "a red circle",
    "two small blue squares on the circle",
    "three large circles",
    "the blue square under a red circle of red",
]


def captions(num: int, length: int = 12) -> CaptionTargets:
    """Of 6 to 12 tokens; the same of the first images, however many there are."""
    tokenizer = build_tokenizer(TOKENIZER)
    texts = [f"{CAPTIONS[i % 4]} {WORDS[i % len(WORDS)]}" for i in range(num)]
    tokens = torch.full((num, length), tokenizer.pad_id)
    for row, text in zip(tokens, texts, strict=True):
        ids = tokenizer.encode(text)
        row[: len(ids)] = torch.tensor(ids)
    return CaptionTargets(tokens, tuple((text, "a circle") for text in texts))


def caption_batch(num: int = 4, length: int = 12) -> Batch:
    return Batch("caption", images(num), captions(num, length), tuple(f"image{i}" for i in range(num)))


def caption_model(
    variant: str = "dtem",
    *,
    reduction: Any = 8,
    objective: str = "supervised",
    prefix: str = CLIP_TOWER,
    vit: Any = None,
    **head: Any,
) -> MultiTaskModel:
    """The captioning task is `tasks.caption`. vit: timm's options."""
    backbone = tiny_vit(variant, reduction=reduction, prefix=prefix, timm_options=vit or {})
    task = TASKS.build("captioning", backbone, **{"model": SPEC, "tokenizer": TOKENIZER} | head)
    return MultiTaskModel(backbone, {"caption": task}, OBJECTIVES.build(objective))


def open_clip_coca(quick_gelu: bool = False) -> Any:
    """With weights that are large enough for words to differ, and a decoder's projection, which open_clip
    leaves to chance."""
    from open_clip.coca_model import CoCa

    torch.manual_seed(SEED + 3)
    read = {"vocab_size": build_tokenizer(TOKENIZER).vocab_size, "context_length": LENGTH}
    text = TOWER | read | {"embed_cls": True, "output_tokens": True}
    model = CoCa(
        32,
        multimodal_cfg=TOWER | read,
        text_cfg=text,
        vision_cfg=VISION | POOLER | {"output_tokens": True},
        quick_gelu=quick_gelu,
    )
    nn.init.normal_(model.text_decoder.text_projection, std=0.3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def with_weights_of(coca: Any, variant: str = "none", **options: Any) -> MultiTaskModel:
    model = caption_model(variant, **options)
    load_weights(model, coca.state_dict())
    return model.eval()


def jitter(model: nn.Module, scale: float = 0.2) -> None:
    """Random weights under which predictions differ from word to word."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)


def repeated(tokens: Tensor, size: Tensor) -> Tensor:
    """tokens [1, M, C], size [1, M] of whole numbers -> [1, sum of size, C]: each as often as its size."""
    return tokens.repeat_interleave(size[0].long(), dim=1)
