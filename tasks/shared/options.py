"""Turns the plain options of a config into a dataclass that checks their values."""

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
