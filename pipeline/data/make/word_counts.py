"""The words of a set's captions, from which a tokenizer's vocabulary is made."""

import os
from collections import Counter
from dataclasses import dataclass, field

from pipeline.data.members.decode import decode_captions, decode_text
from pipeline.data.samples.text import split_words
from pipeline.data.shards.cache import default_cache
from pipeline.data.shards.find import load_manifest
from pipeline.data.shards.indexes import load_index
from pipeline.data.shards.locations import is_remote
from pipeline.errors import SampleError


@dataclass
class Words:
    """The words of some captions, counted."""

    counts: Counter[str] = field(default_factory=Counter)
    """Maps a word to how often it occurs."""
    num_captions: int = 0
    longest: int = 0
    """Number of words of the longest caption."""

    def vocabulary(self, min_count: int) -> list[str]:
        """The words that occur `min_count` times or more, the most frequent first; equally frequent ones by
        alphabet."""
        frequent = [word for word, count in self.counts.items() if count >= min_count]
        return sorted(frequent, key=lambda word: (-self.counts[word], word))

    def add(self, caption: str) -> None:
        words = split_words(caption)
        self.counts.update(words)
        self.num_captions += 1
        self.longest = max(self.longest, len(words))


def count_words(source: str, field: str | None = None) -> Words:
    """The words of the training captions in local shards. Reads only the members with captions. field: see
    data.caption_field. Raises SampleError with the key of a sample whose captions cannot be used."""
    manifest = load_manifest(source, "train")
    wanted = ("json",) if field else ("txt", "json")
    if not set(wanted) & set(manifest.schema):
        raise SampleError(
            f"{source}: its samples have the members {', '.join(manifest.schema)}, and so no captions "
            f"({' or '.join(wanted)})"
        )
    if is_remote(manifest.shards.url(0)):
        raise SampleError(f"{source}: words are counted in local shards; copy them here first")
    words = Words()
    cache = default_cache()
    for shard in manifest.shards:
        index = load_index(shard, cache)
        with open(shard.url, "rb") as file:
            for sample, key in enumerate(index.keys):
                places = index.members(sample, wanted)
                own = "txt" if "txt" in places else "json"
                offset, size = places.get(own, (0, 0))
                data = os.pread(file.fileno(), size, offset)
                try:
                    for caption in (
                        decode_text(data) if own == "txt" else decode_captions(data, field or "captions")
                    ):
                        words.add(caption)
                except SampleError as err:
                    raise SampleError(
                        f"{shard.name}, sample '{key}': {err}; see `dtem shards verify`"
                    ) from err
    return words
