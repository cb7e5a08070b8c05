"""CLIP without its image tower, built by open_clip: the text tower, and the projections to what both sides
share. Importing this module imports open_clip, which takes seconds. B images, T texts, L tokens, C channels,
E embedding."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.data.samples.text import Tokenizer
from pipeline.errors import CheckpointError, ConfigError
from pipeline.extras import extra
from pipeline.parts import HEAD
from pipeline.token_state import BackboneOutput
from tasks.open_clip_bridge.tokenizer import ClipTokenizer
from tasks.shared.pooling import pool

with extra("captioning"):
    from open_clip.model import _build_text_tower

POOLS = {"tok": "token", "avg": "avg"}
_TOP = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.", "text_projection")
"""How the tensors of the text tower are called where it is no part of its own."""
USED = ("vision_cfg", "text_cfg", "embed_dim", "quick_gelu", "custom_text")


@dataclass(frozen=True)
class ImageTower:
    """timm's ViT with the image tower's sizes. name: of timm's model; options: of its class."""

    name: str
    img_size: int
    options: dict[str, Any]


class Clip(nn.Module):
    """The contrastive part of a CLIP: a `Captioner` of `tasks.captions.retrieval`, for zero-shot
    classification.

    Its image features are read from the backbone's state after the last norm. config: open_clip's. tensors:
    the model's state dict. Raises ConfigError for a model of another kind, CheckpointError for tensors that
    are missing or of another shape.
    """

    part_kind = HEAD
    taps: tuple[int, ...] = ()
    unmerge: str | None = None

    def __init__(self, name: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]):
        super().__init__()
        _check(name, config)
        self.tokenizer: Tokenizer = ClipTokenizer(name=name)
        self.pool = POOLS[config["vision_cfg"].get("pool_type", "tok")]
        text: Any = dict(config["text_cfg"])
        try:
            self.text = _build_text_tower(config["embed_dim"], text, config.get("quick_gelu", False))
        except (TypeError, ValueError, AssertionError, RuntimeError) as err:
            raise ConfigError(f"open_clip cannot build the text tower of {name}: {err}") from err
        width = config["vision_cfg"].get("width", 768)
        self.proj = nn.Parameter(torch.empty(width, config["embed_dim"]))
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self._fill(name, {key.removeprefix("module."): value for key, value in tensors.items()})

    def _fill(self, name: str, given: Mapping[str, Tensor]) -> None:
        own = {f"text.{key}": value for key, value in given.items() if key.startswith(_TOP)}
        own |= {key: value for key, value in given.items() if key.startswith("text.")}
        places = {"visual.proj": "proj", "logit_scale": "logit_scale"}
        own |= {ours: given[theirs] for theirs, ours in places.items() if theirs in given}
        if "logit_scale" in own:
            own["logit_scale"] = own["logit_scale"].reshape(())
        try:
            self.load_state_dict(own)
        except RuntimeError as err:
            raise CheckpointError(f"these are not the weights of open_clip's {name}: {err}") from err

    def image_features(self, output: BackboneOutput) -> Tensor:
        """[B, E] float32, of norm 1."""
        return F.normalize((pool(output.final, self.pool) @ self.proj).float(), dim=-1)

    def text_features(self, tokens: Tensor) -> Tensor:
        """[T, E] float32, of norm 1. tokens: int64 [T, L], padded with 0."""
        length = self.tokenizer.context_length
        return F.normalize(self.text(F.pad(tokens, (0, length - tokens.shape[1]))).float(), dim=-1)

    def contrastive_scale(self) -> Tensor:
        """Factor of the products of features, a tensor [1]."""
        return self.logit_scale.exp().reshape(1)


def image_tower(name: str, config: Mapping[str, Any]) -> ImageTower:
    """The backbone of a CLIP's native image tower. Raises ConfigError for one of another kind."""
    _check(name, config)
    vision = config["vision_cfg"]
    width, size = vision.get("width", 768), vision.get("image_size", 224)
    ratio = vision.get("mlp_ratio", 4.0)
    options = {
        "patch_size": vision.get("patch_size", 16),
        "embed_dim": width,
        "depth": vision.get("layers", 12),
        "num_heads": width // vision.get("head_width", 64),
        "mlp_ratio": ratio,
    }
    kind = "_quickgelu" if config.get("quick_gelu") else ""
    return ImageTower(f"vit_base_patch16_clip{kind}_224", size, options)


def _check(name: str, config: Mapping[str, Any]) -> None:
    """Raises ConfigError for a model whose scores this would compute otherwise than open_clip does."""
    vision, text = config.get("vision_cfg", {}), config.get("text_cfg", {})
    reasons = {
        "its image tower is timm's": vision.get("timm_model_name"),
        "it is a CoCa, which a captioning run scores": "multimodal_cfg" in config,
        "its image tower is no ViT": not isinstance(vision.get("layers", 12), int),
        "its image tower pools by attention": vision.get("attentional_pool"),
        "its text tower is one of transformers": text.get("hf_model_name") or text.get("hf_tokenizer_name"),
        "it has a bias of the logits": config.get("init_logit_bias") is not None,
        f"its images are pooled by {vision.get('pool_type')}": vision.get("pool_type", "tok") not in POOLS,
        f"it has {', '.join(sorted(set(config) - set(USED)))}": set(config) - set(USED),
    }
    plain = {"no_ln_pre", "ls_init_value", "final_ln_after_pool", "block_type", "qk_norm", "act_kwargs"}
    plain |= {
        "scaled_cosine_attn",
        "scale_heads",
        "scale_attn_inner",
        "scale_attn",
        "scale_fc",
        "norm_kwargs",
    }
    reasons |= {f"its image tower has {key}": vision.get(key) for key in sorted(plain)}
    if found := [reason for reason, is_so in reasons.items() if is_so]:
        raise ConfigError(
            f"open_clip:{name} cannot be scored without a run: {found[0]}; give a CLIP with open_clip's own "
            "ViT, such as open_clip:ViT-B-32@laion2b_s34b_b79k"
        )
