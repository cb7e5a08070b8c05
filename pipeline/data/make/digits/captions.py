"""Five captions of a digit scene, each in its own wording, each true of the picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COUNTS = ("no", "one", "two", "three", "four")
RELATIONS = {
    "above": ("above", "over"),
    "below": ("below", "under"),
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
}
CLEAR = 0.05
"""Part of the canvas by which centres must differ before a caption tells their order."""


@dataclass(frozen=True)
class Placed:
    """A digit and its centre, x to the right and y down, as parts of the canvas."""

    digit: int
    x: float
    y: float


def captions(digits: Sequence[Placed], rng: np.random.Generator) -> tuple[str, ...]:
    """Five captions. digits: the largest first, which is clearly larger than the others."""
    return _of_one(digits[0]) if len(digits) == 1 else _of_many(digits, rng)


def _of_one(digit: Placed) -> tuple[str, ...]:
    name, where = NAMES[digit.digit], _place(digit)
    return (
        f"{_a(name)} on its own",
        f"{_a(name)} {where}",
        f"there is a single {name} {where}",
        f"one handwritten digit, {_a(name)}",
        f"a picture of {_a(name)} and nothing else",
    )


def _of_many(digits: Sequence[Placed], rng: np.random.Generator) -> tuple[str, ...]:
    large, others = digits[0], digits[1:]
    name, names = NAMES[large.digit], _joined([_a(NAMES[other.digit]) for other in others])
    return (
        f"{_a(name)} "
        + _joined([f"{_relation(large, other, rng)} {_a(NAMES[other.digit])}" for other in others]),
        f"a big {name} with "
        + _joined([f"{_a(NAMES[other.digit])} {_relation(other, large, rng)} it" for other in others]),
        f"the largest digit is {_a(name)}; the other{'s are' if len(others) > 1 else ' is'} {names}",
        f"{COUNTS[len(digits)]} digits{_in_order(digits)}",
        _joined(
            [
                f"a big {name} {_place(large)}",
                *(f"a small {NAMES[other.digit]} {_place(other)}" for other in others),
            ]
        ),
    )


def _relation(one: Placed, other: Placed, rng: np.random.Generator) -> str:
    """Where `one` is, seen from `other`: along the axis on which they are further apart."""
    across, down = one.x - other.x, one.y - other.y
    if abs(down) >= abs(across):
        kind = "below" if down > 0 else "above"
    else:
        kind = "right" if across > 0 else "left"
    return str(rng.choice(RELATIONS[kind]))


def _in_order(digits: Sequence[Placed]) -> str:
    """The digits in their order along an axis, if it is clear on one; else as they come."""
    for axis, words in (("x", " from left to right"), ("y", " from top to bottom")):
        row = sorted(digits, key=lambda digit: getattr(digit, axis))
        gaps = [getattr(second, axis) - getattr(first, axis) for first, second in pairwise(row)]
        if min(gaps) >= CLEAR:
            return f"{words}: {_joined([_a(NAMES[digit.digit]) for digit in row])}"
    return f": {_joined([_a(NAMES[digit.digit]) for digit in digits])}"


def _place(digit: Placed) -> str:
    across = "left" if digit.x < 1 / 3 else "right" if digit.x > 2 / 3 else ""
    down = "top" if digit.y < 1 / 3 else "bottom" if digit.y > 2 / 3 else ""
    if down:
        return f"at the {down} {across}".rstrip()
    return f"on the {across}" if across else "in the middle"


def _a(noun: str) -> str:
    return f"an {noun}" if noun == "eight" else f"a {noun}"


def _joined(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]
