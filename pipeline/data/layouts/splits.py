"""The split that a shard belongs to, by its name."""

import re

_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_PART = re.compile(rf"(?<![a-z])({'|'.join(sorted(_WORDS, key=len, reverse=True))})(?![a-z])")
"""A whole word of the name: not the `train` of `pretrained`."""


def split_of(name: str) -> str:
    """`train`, `val` or `test` for a name such as `val-00000.tar` or `imagenet1k-validation-00.tar`.

    Empty where the name has no such word (img2dataset's `00000.tar`), or words of different splits
    (`train-val-0.tar`).
    """
    found = {_WORDS[word] for word in _PART.findall(name.lower())}
    return found.pop() if len(found) == 1 else ""


def split_word(name: str) -> str:
    """The split of a folder whose whole name is one of the words; else empty."""
    return _WORDS.get(name.lower(), "")
