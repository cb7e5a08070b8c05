"""Builds the dataclasses of schema.py from plain data, strictly, and turns them back. Standard library only.

Every mistake is collected with its dotted path. Nothing is guessed or dropped, and only int to float and list
to tuple are converted.
"""

import dataclasses
import difflib
import math
import re
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pipeline.errors import ConfigError
from pipeline.registry import unknown_name

SECTIONS = "backbone merging mixing balancing objective step optim train engine log".split()
PAGES = {name: name for name in SECTIONS} | {
    "tasks": "tasksname",
    "seed": "at-the-top",
    "custom_imports": "at-the-top",
    "output": "at-the-top",
    "folder": "at-the-top",
}
"""Settings -> the heading of docs/configuration.md that they stand under."""
ELSEWHERE = {
    "merging.schedule": "no setting, as what is solved depends on what was trained: `dtem sweep --schedule "
    "solved` prints r of each block (so does `learned`), for merging.reduction=[9,7,0,4]; merging.within=0.5 "
    "merges early"
}
"""Names that a user may expect -> where what they mean is to be had."""
_INVALID = object()
"""Stands for a value that could not be built; the reason is in the list of mistakes."""


def build_dataclass(cls: type, data: object, source: str = "configuration") -> Any:
    """An instance of `cls` from nested dicts, lists and scalars. Raises ConfigError that lists all mistakes,
    each with its dotted path."""
    mistakes: list[str] = []
    value = _build(cls, data, "", mistakes)
    if mistakes:
        raise ConfigError(all_mistakes(source, mistakes))
    return value


def all_mistakes(source: str, mistakes: list[str]) -> str:
    """One message for several mistakes, one line each, and where the settings are explained."""
    count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
    return "\n  ".join([f"{source}: {count}", *mistakes, *_pages(mistakes)])


def _pages(mistakes: list[str]) -> list[str]:
    """A line with the parts of the page of settings that the mistakes are about; none for others."""
    first = [re.split(r"\W", mistake, maxsplit=1)[0] for mistake in mistakes]
    parts = dict.fromkeys(PAGES[word] for word in first if word in PAGES)
    return [f"(see {', '.join(f'docs/configuration.md#{part}' for part in parts)})"] if parts else []


def plain(value: Any) -> Any:
    """The value as nested dicts, lists and scalars, as JSON has them: the inverse of `build_dataclass`."""
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def _build(kind: Any, data: Any, path: str, mistakes: list[str]) -> Any:
    if kind is Any:
        return _build_plain(data, path, mistakes)
    if reason := _unsound(data):
        mistakes.append(f"{path}: {reason}")
        return _INVALID
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _build_section(kind, data, path, mistakes)
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _build_union(kind, args, data, path, mistakes)
    if origin is dict and isinstance(data, Mapping):
        return _build_mapping(args[1], data, path, mistakes)
    if origin is list and isinstance(data, (list, tuple)):
        return [_build(args[0], item, f"{path}.{i}", mistakes) for i, item in enumerate(data)]
    if origin is tuple and isinstance(data, (list, tuple)) and len(data) == len(args):
        return tuple(
            _build(arg, item, f"{path}.{i}", mistakes)
            for i, (arg, item) in enumerate(zip(args, data, strict=True))
        )
    if origin is Literal and isinstance(data, (str, int)) and not isinstance(data, bool) and data in args:
        return data
    if isinstance(kind, type) and type(data) is kind and _is_finite(data):
        return data
    if kind is float and type(data) is int:
        return float(data)
    mistakes.append(f"{path}: expected {_describe(kind)}, got {_shown(data)}{_nearest(kind, data)}")
    return _INVALID


def _build_section(cls: type, data: Any, path: str, mistakes: list[str]) -> Any:
    if not isinstance(data, Mapping):
        mistakes.append(f"{path or cls.__name__}: expected a dict of settings, got {_shown(data)}")
        return _INVALID
    kinds, before = get_type_hints(cls), len(mistakes)
    known = {f.name: f for f in dataclasses.fields(cls)}
    for key in data:
        if key not in known:
            whole = _join(path, key)
            told = ELSEWHERE.get(".".join(whole.split(".")[-2:])) or unknown_name("key", key, known)
            mistakes.append(f"{whole}: {told}")
    for name, spec in known.items():
        if (
            name not in data
            and spec.default is dataclasses.MISSING
            and spec.default_factory is dataclasses.MISSING
        ):
            mistakes.append(
                f"{_join(path, name)}: required, but not given; expected {_describe(kinds[name])}"
            )
    values = {
        name: _build(kinds[name], data[name], _join(path, name), mistakes) for name in known if name in data
    }
    if len(mistakes) > before:
        return _INVALID
    try:
        return cls(**values)
    except ConfigError as err:
        mistakes.append(f"{path}: {err}" if path else str(err))
        return _INVALID


def _build_union(kind: Any, args: tuple[Any, ...], data: Any, path: str, mistakes: list[str]) -> Any:
    """The value as the first member that fits, in the order of the annotation. A dict is built as the section
    among the members, so that its mistakes are reported."""
    section = next((arg for arg in args if dataclasses.is_dataclass(arg)), None)
    if isinstance(section, type) and isinstance(data, Mapping):
        return _build_section(section, data, path, mistakes)
    for arg in args:
        trial: list[str] = []
        value = _build(arg, data, path, trial)
        if not trial:
            return value
    mistakes.append(f"{path}: expected {_describe(kind)}, got {_shown(data)}{_nearest(kind, data)}")
    return _INVALID


def _build_mapping(kind: Any, data: Mapping[Any, Any], path: str, mistakes: list[str]) -> dict[str, Any]:
    mistakes.extend(f"{path}: the key {key!r} is not a string" for key in data if not isinstance(key, str))
    return {str(key): _build(kind, item, _join(path, key), mistakes) for key, item in data.items()}


def _build_plain(data: Any, path: str, mistakes: list[str]) -> Any:
    """Options that another part checks. They are plain data, with tuples as lists, so that a run and its
    resumption see the same."""
    if isinstance(data, Mapping):
        return _build_mapping(Any, data, path, mistakes)
    if isinstance(data, (list, tuple)):
        return [_build_plain(item, f"{path}.{i}", mistakes) for i, item in enumerate(data)]
    if (data is None or type(data) in (bool, int, float, str)) and _is_finite(data) and not _unsound(data):
        return data
    expected = "expected plain data (None, bool, finite number, string, list or dict)"
    mistakes.append(f"{path}: {_unsound(data) or f'{expected}, got {_shown(data)}'}")
    return _INVALID


def _unsound(data: object) -> str | None:
    """Why no field can have this value, because no file, tensor or JSON holds it; None where one can."""
    if isinstance(data, int) and data.bit_length() > 63:
        return f"an integer of {data.bit_length()} bits; give one of at most 63"
    return f"{_shown(data)} has a NUL character in it" if isinstance(data, str) and "\0" in data else None


def _is_finite(data: object) -> bool:
    return not isinstance(data, float) or math.isfinite(data)


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _shown(data: object) -> str:
    text = repr(data)
    return f"{type(data).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def _nearest(kind: Any, data: object) -> str:
    """The nearest of the words that a field may have, as the end of a message."""
    members = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    words = [word for one in members if get_origin(one) is Literal for word in map(str, get_args(one))]
    near = difflib.get_close_matches(str(data), words, n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


def _describe(kind: Any) -> str:
    """A type in the words of a reader of configs."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(arg) for arg in args)
    if origin is Literal:
        return "one of " + ", ".join(repr(arg) for arg in args)
    if origin is tuple:
        return f"({', '.join(_describe(arg) for arg in args)})"
    if origin in (list, dict):
        return f"{origin.__name__} of {_describe(args[-1])}" if args[-1] is not Any else origin.__name__
    if dataclasses.is_dataclass(kind):
        return "a dict of settings"
    return {
        type(None): "None",
        float: "a finite number",
        int: "an integer",
        str: "a string",
        bool: "True or False",
    }.get(kind, str(kind))
