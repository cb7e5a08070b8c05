"""The values of options: lists, shares, counts, colours, reductions. What is none of these raises
ArgumentTypeError, whose message argparse shows."""

import argparse
from typing import TypeVar

N = TypeVar("N", int, float)

FORMS = "8 (per block), 0.9 (keep rate), '(8,-1)' (with inflection) or '[8,8,4]' (by block)"


def reductions(text: str) -> list[str]:
    """`8,(8,-1),[8,8,4]` as a list of at least one text, parted at commas outside of brackets."""
    from pipeline.config.overrides import parts

    if not (found := [part.strip() for part in parts(text)]):
        raise argparse.ArgumentTypeError(f"'{text}' is no reduction; give one or more: {FORMS}")
    return found


def names(text: str) -> list[str]:
    """`a,b` as a list of at least one."""
    if not (found := [name.strip() for name in text.split(",") if name.strip()]):
        raise argparse.ArgumentTypeError(f"'{text}' names nothing; give one or more, as in a,b")
    return found


def compiles(text: str) -> list[str]:
    """`none,model` as a list of settings of engine.compile."""
    found = names(text)
    if wrong := [name for name in found if name not in ("none", "model", "blocks")]:
        raise argparse.ArgumentTypeError(f"'{wrong[0]}' is none of none, model, blocks")
    return found


def fractions(text: str) -> list[float]:
    """`0.7,0.5` as a list of fractions in (0, 1)."""
    values = [_number(part, float) for part in names(text)]
    if not all(0 < value < 1 for value in values):
        raise argparse.ArgumentTypeError(
            f"'{text}' is not a list of fractions in (0, 1), such as 0.7,0.5,0.3"
        )
    return values


def count(text: str) -> int:
    """A whole number from 1."""
    value = _number(text, int)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


def share(text: str) -> float:
    """A share in (0, 1)."""
    value = _number(text, float)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a share in (0, 1), such as 0.1")
    return value


def _number(text: str, kind: type[N]) -> N:
    try:
        return kind(text)
    except ValueError as err:
        what = "whole number" if kind is int else "number"
        raise argparse.ArgumentTypeError(f"'{text}' is no {what}") from err


def numbers(text: str) -> list[int]:
    """`0,4,8` as a list of counts."""
    values = [_number(part, int) for part in names(text)]
    if min(values) < 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of counts from 0, such as 0,4,8")
    return values


def colour(text: str) -> tuple[float, float, float]:
    """`0.5,0.5,0.5` as three numbers in [0, 1]."""
    values = [_number(part, float) for part in names(text)]
    if len(values) != 3 or not all(0 <= value <= 1 for value in values):
        raise argparse.ArgumentTypeError(f"'{text}' is not three numbers in [0, 1], such as 0.5,0.5,0.5")
    return values[0], values[1], values[2]
