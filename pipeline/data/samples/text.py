"""Text as token numbers. A tokenizer is named in the configuration as plain data, so that a run carries its
vocabulary with it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pipeline.errors import ConfigError
from pipeline.registry import Registry

_WORD = re.compile(r"\w+(?:'\w+)*|[^\w\s]")


class Tokenizer(Protocol):
    """Numbers in [0, vocab_size), of which pad_id, bos_id and eos_id are no text."""

    context_length: int
    """The most tokens of a text, bos and eos among them."""
    vocab_size: int
    pad_id: int
    bos_id: int
    eos_id: int

    def encode(self, text: str) -> list[int]:
        """bos, the text's tokens, eos: at most context_length of them, as a longer text loses its end. Not
        padded."""
        ...

    def is_cut(self, text: str) -> bool:
        """Whether `encode` leaves out some of the text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text up to the first eos; bos and pad are left out."""
        ...


TOKENIZERS: Registry[Tokenizer] = Registry("tokenizer")
"""`clip` is added by the package `tasks`."""


def build_tokenizer(spec: Mapping[str, Any]) -> Tokenizer:
    """spec: the configuration's dict of a name (`type`) and its options. Raises ConfigError."""
    options = dict(spec)
    if "type" not in options:
        raise ConfigError(f"tokenizer has no type; give one of {', '.join(TOKENIZERS.names())}")
    return TOKENIZERS.build(options.pop("type"), **options)


def check_context_length(length: object) -> None:
    """Raises ConfigError for what cannot be a tokenizer's context_length."""
    if not isinstance(length, int) or length < 3:
        raise ConfigError(
            f"tokenizer: context_length is {length!r}; give a whole number from 3 (a word and its two marks)"
        )


def ids_of_text(ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """The numbers up to the first eos, without bos and pad."""
    ids = list(ids)
    text = ids[: ids.index(tokenizer.eos_id)] if tokenizer.eos_id in ids else ids
    return [i for i in text if i not in (tokenizer.bos_id, tokenizer.pad_id)]


def split_words(text: str) -> list[str]:
    """Lower-cased words, and each mark of punctuation by itself; an apostrophe inside a word belongs to
    it."""
    return _WORD.findall(text.lower())


@TOKENIZERS.register("words")
class WordTokenizer:
    """A token for each listed word; 0 pad, 1 bos, 2 eos, 3 any other word. For small vocabularies. Raises
    ConfigError."""

    pad_id, bos_id, eos_id, unknown_id = 0, 1, 2, 3

    def __init__(self, *, words: Sequence[str], context_length: int = 32):
        check_context_length(context_length)
        if isinstance(words, str) or not words or not all(isinstance(word, str) for word in words):
            raise ConfigError(
                "tokenizer: words is no list of words; `dtem shards words` prints the words of a set"
            )
        strange = [word for word in words if split_words(word) != [word]]
        if strange or len(set(words)) < len(words):
            twice = [word for word in set(words) if list(words).count(word) > 1]
            raise ConfigError(
                "tokenizer: each of words is one lower-case word, listed once, unlike "
                f"{(strange or twice)[0]!r}"
            )
        self.context_length = context_length
        self._texts = ["", "", "", "<unk>", *words]
        self._ids = {word: i for i, word in enumerate(self._texts) if i > self.unknown_id}
        self.vocab_size = len(self._texts)

    def encode(self, text: str) -> list[int]:
        ids = [self._ids.get(word, self.unknown_id) for word in split_words(text)]
        return [self.bos_id, *ids[: self.context_length - 2], self.eos_id]

    def is_cut(self, text: str) -> bool:
        return len(split_words(text)) > self.context_length - 2

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(self._texts[i] for i in ids_of_text(ids, self))
