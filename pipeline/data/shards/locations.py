"""Locations of shards as a user writes them: a folder, a brace pattern, a list, or a URL. A location is data:
nothing in it is ever run."""

import os
import re
from collections.abc import Iterator, Sequence

from pipeline.data.layouts.splits import split_word
from pipeline.errors import SampleError
from pipeline.redact import MARK

SCHEMES = ("file", "http", "https", "hf", "s3", "gs", "az")
MAX_SHARDS = 1_000_000
"""Most shards that a pattern names."""
MAX_GROUPS = 16
"""Most groups in braces of a pattern."""
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_GROUP = re.compile(r"\{([^{}]*)\}")
_UNREADABLE = re.compile(r"\.(tar(\.(gz|bz2|xz|zst|lz4))?|tgz|tbz2?|txz)$", re.IGNORECASE)
_RANGE = re.compile(r"(\d{1,12})\.\.(\d{1,12})")


def checked(location: str) -> str:
    """The location without `file://`. Raises SampleError for anything but a plain path or an allowed URL."""

    def refuse(why: str) -> SampleError:
        return SampleError(
            f"shard location {location!r:.200}: {why}; give a path, or a URL of {', '.join(SCHEMES)}"
        )

    if not isinstance(location, str) or not location or len(location) > 4096:
        raise refuse("it is empty, too long or not text")
    if not location.isprintable() or location != location.strip():
        raise refuse("it holds control characters or outer spaces")
    if location.startswith("-") or "::" in location or "$" in location or "`" in location:
        raise refuse("it starts with '-', chains file systems ('::') or holds '$' or '`'")
    if MARK in location:
        raise refuse(f"{MARK} stands for a secret that was left out when the configuration was saved")
    scheme = _SCHEME.match(location)
    if scheme is None:
        return location
    if scheme[1] not in SCHEMES or not location.startswith(f"{scheme[1]}://"):
        raise refuse(f"'{scheme[1]}:' is not an allowed scheme")
    if scheme[1] == "file":
        return location.removeprefix("file://")
    if "?" in location or "#" in location:
        raise refuse("a query or fragment does not name a file beside which a manifest can lie")
    return location


def sets_of(source: str | Sequence[str]) -> list[str]:
    """The places of several sets: those of a list, and those between `::`, as open_clip writes them."""
    names = [source] if isinstance(source, str) else source
    return [part for name in names for part in (name.split("::") if isinstance(name, str) else [name])]


def is_remote(location: str) -> bool:
    return "://" in location


def join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}"


def split(location: str) -> tuple[str, str]:
    """(folder, name) of a file."""
    folder, _, name = location.rpartition("/")
    return folder or ("/" if location.startswith("/") else "."), name


def expand(pattern: str) -> list[str]:
    """Every location of a brace pattern: `{00000..00008}` counts with its zeros, `{a,b}` lists."""
    found: list[str] = []
    if checked(pattern).count("{") > MAX_GROUPS:
        raise SampleError(f"shard pattern {pattern!r:.200} has more than {MAX_GROUPS} groups in braces")
    for location in _expand(checked(pattern)):
        if len(found) == MAX_SHARDS:
            raise SampleError(f"shard pattern {pattern!r:.200} names more than {MAX_SHARDS} shards")
        found.append(location)
    return found


def _expand(pattern: str) -> Iterator[str]:
    group = _GROUP.search(pattern)
    if group is None:
        yield pattern
        return
    for choice in _choices(group[1], pattern):
        yield from _expand(pattern[: group.start()] + choice + pattern[group.end() :])


def _choices(group: str, pattern: str) -> Iterator[str]:
    numbers = _RANGE.fullmatch(group)
    if numbers is None:
        if "," not in group:
            raise SampleError(
                f"shard pattern {pattern!r:.200}: '{{{group}}}' is neither a range {{000..012}} nor a "
                f"list {{a,b}}"
            )
        yield from group.split(",")
        return
    first, last = numbers.groups()
    width = max(len(first), len(last)) if first.startswith("0") else 0
    for number in range(int(first), int(last) + 1):
        yield str(number).zfill(width)


def local_shards(folder: str) -> list[str]:
    """The tar files of a local folder, by name. Raises SampleError for a missing folder, and for tars that
    would be left out: compressed ones, in which no sample can be read by its place, and `.TAR`."""
    names = tar_names(folder)
    if others := sorted(name for name in _names(folder) if _UNREADABLE.search(name) and name not in names):
        raise SampleError(
            f"{folder} holds {len(others)} shards that cannot be read, for instance {others[0]}: "
            "decompress them to plain tars that end "
            "in .tar, take them away, or give a pattern of those that are meant"
        )
    return [join(folder, name) for name in names]


def split_folders(folder: str) -> dict[str, str]:
    """Maps a split to the folder inside of a local one that is called by it and holds tars: `train`,
    `validation`. Raises SampleError where two of them are one split."""
    found: dict[str, str] = {}
    for name in sorted(_names(folder)):
        place = join(folder, name)
        if not (word := split_word(name)) or not os.path.isdir(place) or not tar_names(place):
            continue
        if word in found:
            raise SampleError(f"{found[word]} and {place} are both the split '{word}'; give one of them")
        found[word] = place
    return found


def tar_names(folder: str) -> list[str]:
    """The names in a folder that end in `.tar`, sorted, without hidden ones, such as macOS leaves beside
    files. Raises SampleError for a missing folder."""
    return sorted(name for name in _names(folder) if name.endswith(".tar"))


def _names(folder: str) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if not name.startswith(".")]
    except OSError as err:
        place = folder if os.path.isabs(folder) else f"{folder}, which is {os.path.abspath(folder)} here"
        raise SampleError(
            f"shards: cannot list {place}: {err.strerror}; give an existing folder, tar or pattern"
        ) from err
