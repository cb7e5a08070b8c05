"""Tokenizes captions in the style of the Penn Treebank: a stand-in for the Stanford tokenizer of the COCO
tools, which is a Java program.

Results differ only for what captions hardly ever have: addresses, rare abbreviations, dates.
"""

import re

_PLAIN = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "…": "...", "—": "--", "–": "--"})
_WRITTEN = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", '"': "''"}
_TOGETHER = re.compile(
    r"\b(can)(not)\b|\b(gon|wan)(na)\b|\b(got)(ta)\b|\b(gim|lem)(me)\b|(?<!\w)('t)(is|was)\b|\b(y')(all)\b"
)
_TOKEN = re.compile(
    r"""
    (?:[a-z]\.){2,}                                              # u.s., a.m.
    | (?:mr|mrs|ms|dr|jr|sr|st|ave|vs|etc)\. | (?:mt|ft|no)\.(?=\s+\S)  # the latter two are words at the end
    | '(?:n'|[st](?!\w)|ll|re|ve|d(?!\w)|m(?!\w))                # what _CLITIC has cut off
    | n't(?!\w) | 't(?=\s(?:is|was)\b) | y'(?=\s+all\b)
    | \$ | \d+(?:[.,:/]\d+)*(?:[a-z]\w*)?(?:-\w+)*               # 1,000, 10:30, 3/4, 20th, 7-up
    | \w+(?:['/&_.-]\w+)*                                        # t-shirt, and/or, o'clock
    | \.{2,} | -{2,} | [!?]+
    | \S
    """,
    re.VERBOSE,
)
_CLITIC = re.compile(r"(?<=\w)(n't|'(?:s|ll|re|ve|d|m))(?=$|[^\w]|'ve)")


def ptb_words(text: str) -> list[str]:
    """Lower-cased words and punctuation of a text."""
    text = _CLITIC.sub(r" \1", text.lower().translate(_PLAIN))
    text = _TOGETHER.sub(lambda found: " ".join(part for part in found.groups() if part), text)
    tokens: list[str] = _TOKEN.findall(text)
    return [_WRITTEN.get(token, token) for token in tokens]
