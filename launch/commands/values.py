"""The values of options: lists, shares, counts, colours, reductions. What is none of these raises
ArgumentTypeError, whose message argparse shows."""

import argparse

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


def fractions(text: str) -> list[float]:
    """`0.7,0.5` as a list of fractions in (0, 1)."""
    values = [float(part) for part in names(text)]
    if not all(0 < value < 1 for value in values):
        raise argparse.ArgumentTypeError(
            f"'{text}' is not a list of fractions in (0, 1), such as 0.7,0.5,0.3"
        )
    return values


def numbers(text: str) -> list[int]:
    """`0,4,8` as a list of counts."""
    values = [int(part) for part in names(text)]
    if min(values) < 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of counts from 0, such as 0,4,8")
    return values


def colour(text: str) -> tuple[float, float, float]:
    """`0.5,0.5,0.5` as three numbers in [0, 1]."""
    values = [float(part) for part in names(text)]
    if len(values) != 3 or not all(0 <= value <= 1 for value in values):
        raise argparse.ArgumentTypeError(f"'{text}' is not three numbers in [0, 1], such as 0.5,0.5,0.5")
    return values[0], values[1], values[2]
