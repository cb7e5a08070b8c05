"""Options in a config: plain data that becomes a dataclass, or is completed."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from pipeline.errors import ConfigError

Options = TypeVar("Options")


def from_options(cls: type[Options], name: str, options: Mapping[str, Any] | None) -> Options:
    """An instance of the dataclass `cls`; None gives its defaults. name: how messages call the options.

    Raises ConfigError for an unknown option, and whatever the dataclass raises for a wrong value.
    """
    known = [field.name for field in fields(cls)]  # pyright: ignore[reportArgumentType]
    if unknown := set(options or ()) - set(known):
        raise ConfigError(f"{name} has no option {min(unknown)!r}; there are {', '.join(known)}")
    return cls(**(options or {}))


def fill_in(options: dict[str, Any], name: str, value: Any, where: str, whose: str) -> None:
    """Sets an option that is not given. Raises ConfigError where it is given with another value; where: the
    place of the option, and whose: what has the value, for the message."""
    given = options.setdefault(name, value)
    if (list(given) if isinstance(given, tuple) else given) != value:
        raise ConfigError(
            f"{where}{name} is {given}, but {whose} {value}; make them agree, or leave {name} out to have it "
            "filled in"
        )
