"""Small damages and malice: what fuzzing makes of a good input. Every choice comes from a `Random`, so that a
case is known by its number, and Hypothesis can make it smaller."""

import copy
import json
import struct
from collections.abc import Sequence
from random import Random
from typing import Any

NUMBERS = [0, 1, -1, 2, 127, 128, 255, 256, 10**30]
NUMBERS += [2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64]
WORDS = "true null none nan 1e999 0x {} [] .. ../x /etc/passwd -x |x $(x) `x` ;x pipe:x http://x __class__"
MARKS = (
    "",
    " ",
    "\0",
    "\n",
    "\x1b]0;x\x07",
    "\u202e",
    "\ud800",
    "\\",
    "'",
    '"',
    "=",
    ",",
    ".",
    "x" * 300,
    "9" * 400,
)
CODE = ("!!python/name:os.system", "__import__('os')", "(" * 60, "[" * 60)
TEXTS = [*WORDS.split(), *MARKS, *CODE]
VALUES: list[Any] = [None, True, False, 0.5, -1.5, 1e300, [], {}, [[]], [None], {"a": None}, {"": 0}]
VALUES += [*NUMBERS, *TEXTS]
MOST_CHANGES = 6


def changed_bytes(random: Random, seeds: Sequence[bytes]) -> bytes:
    """One of the seeds with some bytes flipped, cut, doubled, moved or replaced by extreme numbers."""
    data = bytearray(random.choice(seeds))
    for _ in range(random.randint(1, MOST_CHANGES)):
        start = random.randint(0, len(data))
        end = min(len(data), start + random.choice((1, 2, 4, 8, 64, 512)))
        kind = random.randint(0, 7)
        if kind == 0 and data:
            data[start % len(data)] ^= 1 << random.randint(0, 7)
        elif kind == 1 and data:
            data[start % len(data)] = random.choice((0, 1, 9, 10, 32, 34, 39, 48, 127, 128, 255))
        elif kind == 2:
            del data[start:end]
        elif kind == 3:
            data[start:start] = data[start:end]
        elif kind == 4:
            number = random.choice(NUMBERS) % 2**64
            data[start:end] = struct.pack(random.choice("<>") + "Q", number)[: max(1, end - start)]
        elif kind == 5:
            other = random.choice(seeds)
            place = random.randint(0, len(other))
            data[start:end] = other[place : place + random.choice((4, 64, 512))]
        elif kind == 6:
            data[start:end] = random.choice(TEXTS).encode(errors="surrogatepass")
        else:
            del data[start:]
    return bytes(data)


def changed_json(random: Random, seeds: Sequence[bytes]) -> bytes:
    """One of the seeds, each a JSON document, with some values or keys replaced, removed or doubled."""
    if random.randint(0, 7) == 0:
        return changed_bytes(random, seeds)
    whole = {"": json.loads(random.choice(seeds))}
    for _ in range(random.randint(1, MOST_CHANGES)):
        _change(random, whole)
    return json.dumps(whole.get("", whole)).encode()


def changed_text(random: Random, seeds: Sequence[bytes]) -> bytes:
    """One of the seeds, each a text, with some words replaced, doubled, moved or removed."""
    if random.randint(0, 3) == 0:
        return changed_bytes(random, seeds)
    text = random.choice(seeds).decode()
    for _ in range(random.randint(1, MOST_CHANGES)):
        start = random.randint(0, len(text))
        end = min(len(text), start + random.choice((0, 0, 1, 3, 10, 40)))
        kind = random.randint(0, 3)
        middle = [random.choice(TEXTS), str(random.choice(NUMBERS)), text[start:end] * 2, ""][kind]
        text = text[:start] + middle + text[end:]
    return text.encode(errors="surrogatepass")


def _change(random: Random, whole: dict[str, Any]) -> None:
    """Replaces a value somewhere in the document, or changes the keys of a mapping."""
    holder: Any = whole
    key: Any = ""
    while isinstance(holder[key], dict | list) and random.randint(0, 4):
        inner = holder[key]
        if not inner:
            break
        holder, key = inner, random.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
    kind = random.randint(0, 3)
    if kind == 0 and holder is not whole:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict) and holder is not whole:
        holder[random.choice(TEXTS)] = copy.deepcopy(holder[key])
    elif kind == 2 and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
    else:
        holder[key] = copy.deepcopy(random.choice(VALUES))
