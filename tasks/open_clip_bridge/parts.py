"""CoCa without its image tower, built by open_clip. Importing this module imports open_clip, which takes
seconds."""

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from pipeline.errors import ConfigError
from pipeline.extras import extra
from pipeline.registry import unknown_name
from tasks.shared.options import fill_in

with extra("captioning"):
    import open_clip
    from open_clip.coca_model import MultimodalCfg, _build_text_decoder_tower
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg, _build_text_tower
    from open_clip.transformer import AttentionalPooler, MultimodalTransformer, TextTransformer

SECTIONS = {"text_cfg": CLIPTextCfg, "multimodal_cfg": MultimodalCfg, "vision_cfg": CLIPVisionCfg}
SPEC = {"embed_dim", "quick_gelu", "custom_text", *SECTIONS}


@dataclass(frozen=True)
class CocaParts:
    """The parts of a CoCa without its image tower.

    text(tokens [B, L]) -> class feature [B, embed_dim], tokens [B, L, width]. The class token comes after the
    L tokens, so that its position, and with it the feature, depends on the padding of the text. decoder(image
    tokens [B, N, width], text tokens [B, L, width]) -> logits [B, L, vocabulary]. n_queries, heads: those of
    the pooler.
    """

    text: TextTransformer
    decoder: MultimodalTransformer
    embed_dim: int
    width: int
    n_queries: int
    heads: int

    def pooler(self, dim: int) -> AttentionalPooler:
        """A new pooler: image tokens [B, N, dim] -> [B, n_queries, width].

        It has no `ln_k`, the norm of the image tokens. The backbone's last norm takes its place and loads its
        weights.
        """
        pooler = AttentionalPooler(self.width, dim, n_head=self.heads, n_queries=self.n_queries)
        pooler.ln_k = nn.Identity()
        return pooler


def build_parts(spec: str | Mapping[str, Any], *, vocab_size: int, context_length: int) -> CocaParts:
    """The parts of a CoCa. spec: open_clip's name of it, or its config as a dict(embed_dim=, text_cfg=,
    multimodal_cfg=, vision_cfg=, quick_gelu=).

    vocab_size, context_length: those of the tokenizer, for a spec without them. Only the pooler's queries and
    heads are read from vision_cfg. Raises ConfigError for a spec that cannot be built or does not fit the
    tokenizer.
    """
    config = read_spec(spec)
    for section in ("text_cfg", "multimodal_cfg"):
        for name, value in {"vocab_size": vocab_size, "context_length": context_length}.items():
            fill_in(config[section], name, value, f"model.{section}.", "the tokenizer's is")
    text_cfg, width = config["text_cfg"], config["multimodal_cfg"].setdefault("width", CLIPTextCfg.width)
    fill_in(text_cfg, "width", width, "model.text_cfg.", "the decoder, which reads the text's tokens, has")
    needed = {"embed_cls": True, "output_tokens": True, "no_causal_mask": False, "pad_id": 0}
    for name, value in needed.items():
        fill_in(text_cfg, name, value, "model.text_cfg.", "captioning needs")
    try:
        text = _build_text_tower(config["embed_dim"], text_cfg, config.get("quick_gelu", False))
        decoder = _build_text_decoder_tower(
            vocab_size, config["multimodal_cfg"], config.get("quick_gelu", False)
        )
    except (TypeError, ValueError, AssertionError, RuntimeError, ArithmeticError) as err:
        raise ConfigError(f"open_clip cannot build {spec}: {str(err) or type(err).__name__}") from err
    assert isinstance(text, TextTransformer), "other towers are refused above"
    # open_clip leaves this tensor uninitialised
    nn.init.normal_(decoder.text_projection, std=width**-0.5)
    n_queries, heads = _pooler_sizes(config)
    if width % heads:
        raise ConfigError(
            f"model: the pooler's {heads} heads do not divide its width {width}; give "
            "vision_cfg.attn_pooler_heads"
        )
    return CocaParts(text, decoder, config["embed_dim"], width, n_queries, heads)


def read_spec(spec: str | Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a CoCa's config with the sections text_cfg, multimodal_cfg and vision_cfg. Raises ConfigError
    for unknown and missing names."""
    config = named_config(spec) if isinstance(spec, str) else copy.deepcopy(dict(spec))
    for name in config:
        if name not in SPEC:
            raise ConfigError(f"model: {unknown_name('option', name, SPEC)}")
    lacking = [name for name in ("embed_dim", "text_cfg", "multimodal_cfg") if name not in config]
    if lacking:
        raise ConfigError(
            f"model {spec!r} has no {', '.join(lacking)}, so it is no CoCa; give one of "
            f"{', '.join(_coca_names())}, or a dict"
        )
    config.setdefault("vision_cfg", {})
    for section, kind in SECTIONS.items():
        config[section] = dict(config[section])
        known = {field.name for field in dataclasses.fields(kind)}
        for name in config[section]:
            if name not in known:
                raise ConfigError(f"model.{section}: {unknown_name('option', name, known)}")
    if config["text_cfg"].get("hf_model_name") or config["text_cfg"].get("hf_tokenizer_name"):
        raise ConfigError(
            f"model {spec!r} reads text by transformers, which this project does not use; give an "
            "open_clip text tower"
        )
    return config


def named_config(name: str) -> dict[str, Any]:
    """open_clip's own config of this name. Nothing is downloaded: names of hubs and folders are refused.
    Raises ConfigError."""
    if name not in open_clip.list_models():
        raise ConfigError(unknown_name("open_clip model", name, open_clip.list_models()))
    config = open_clip.get_model_config(name)
    assert config is not None
    return config


def _coca_names() -> list[str]:
    return [name for name in open_clip.list_models() if name.startswith("coca_") and "roberta" not in name]


def _pooler_sizes(config: Mapping[str, Any]) -> tuple[int, int]:
    """Numbers of the pooler's queries and heads: from vision_cfg, as in open_clip, else from
    multimodal_cfg."""
    vision, multimodal, default = config["vision_cfg"], config["multimodal_cfg"], MultimodalCfg()
    n_queries = vision.get("attn_pooler_queries", multimodal.get("n_queries", default.n_queries))
    return n_queries, vision.get(
        "attn_pooler_heads", multimodal.get("attn_pooler_heads", default.attn_pooler_heads)
    )
