"""The pages that a user reads, cut into what the tests of `tests/docs` look at."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
HISTORY = (ROOT / "CHANGELOG.md", ROOT / "docs/log.md")
"""They tell what was, so the names in them may be those of then."""
PRESENT = sorted(
    {*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks/README.md"}.difference(HISTORY)
)
"""They tell what is."""
PAGES = [*PRESENT, *HISTORY]
PROGRAMS = ("dtem", "deepspeed", "torchrun", "python", "make", "pip")
TRAINERS = ("launch/train.py", "dtem.train")
"""How a launcher is told what to start; what stands behind is an argument of `dtem train`."""
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, kind: str) -> list[str]:
    """The texts of the fenced blocks of one language."""
    return [text for language, text in _BLOCK.findall(page.read_text()) if language == kind]


def prose(page: Path) -> list[str]:
    """The lines outside fenced and indented blocks and tables."""
    lines = _BLOCK.sub("", page.read_text()).splitlines()
    return [line for line in lines if not line.startswith(("|", "    ", "!["))]


def spans(page: Path) -> list[str]:
    """What stands between single backticks, with line breaks as spaces."""
    return [" ".join(text.split()) for text in re.findall(r"`([^`]+)`", _BLOCK.sub("", page.read_text()))]


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each command that a page shows as a line of its own."""
    shown = [*blocks(page, "bash"), *re.findall(r"^    (.*)$", _BLOCK.sub("", page.read_text()), re.M)]
    for line in "\n".join(shown).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True) if line.split() else []
        if words and words[0] in PROGRAMS:
            yield words


def as_dtem(words: list[str]) -> list[str] | None:
    """The arguments of `dtem` that a command comes to, or None where it starts something else."""
    if words[0] == "dtem":
        return words[1:]
    started = [index for index, word in enumerate(words) if word in TRAINERS]
    if started:
        return ["train", *words[started[0] + 1 :]]
    if words[0] == "torchrun" and "dtem" in words:
        return words[words.index("dtem") + 1 :]
    return None
