"""CLIP's byte-pair tokenizer with the 49,408 tokens of open_clip, which is imported when a tokenizer is
built."""

from collections.abc import Sequence

from pipeline.data.samples.text import TOKENIZERS, check_context_length, ids_of_text
from pipeline.errors import ConfigError
from pipeline.extras import extra


@TOKENIZERS.register("clip")
class ClipTokenizer:
    """See Tokenizer: open_clip's SimpleTokenizer, for lower-cased text.

    name: an open_clip model, for its context length and cleaning of text. context_length: most tokens of a
    text with bos and eos; None takes that of the model, or CLIP's 77. Raises ConfigError.
    """

    pad_id = 0

    def __init__(self, *, context_length: int | None = None, name: str | None = None):
        with extra("captioning"):
            from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, SimpleTokenizer

        text_cfg = _text_config(name) if name else {}
        length = context_length or text_cfg.get("context_length", DEFAULT_CONTEXT_LENGTH)
        check_context_length(length)
        self.context_length: int = length
        self._bpe = SimpleTokenizer(context_length=length, **text_cfg.get("tokenizer_kwargs", {}))
        self.vocab_size: int = self._bpe.vocab_size
        self.bos_id: int = self._bpe.sot_token_id
        self.eos_id: int = self._bpe.eot_token_id

    def encode(self, text: str) -> list[int]:
        return [self.bos_id, *self._bpe.encode(text)[: self.context_length - 2], self.eos_id]

    def is_cut(self, text: str) -> bool:
        return len(self._bpe.encode(text)) > self.context_length - 2

    def decode(self, ids: Sequence[int]) -> str:
        return self._bpe.decode(ids_of_text(ids, self)).strip()


def _text_config(name: str) -> dict:
    from tasks.open_clip_bridge.parts import named_config

    config = named_config(name)["text_cfg"]
    if config.get("hf_tokenizer_name") or config.get("hf_model_name") or "siglip" in name.lower():
        raise ConfigError(
            f"tokenizer: open_clip model '{name}' does not read text by CLIP's tokens; give the name of "
            "one that does"
        )
    return config
