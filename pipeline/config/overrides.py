"""Overrides: changes `a.b=value` of a config on the command line. Standard library only."""

import ast
import copy
import dataclasses
import logging
import types
from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Any, Union, get_args, get_origin, get_type_hints

from pipeline.config.schema import RunConfig
from pipeline.errors import ConfigError

log = logging.getLogger(__name__)

LENGTHS = ("train.steps", "train.epochs")
"""Fields of which a run has one."""
UNMERGED = ("merging.policy", "none")
KEPT_UNMERGED = ("policy", "embedding", "adapter_rank", "rotary", "rotary_bias")
"""Fields of the section `merging` that do not say how many tokens merge, and how."""
MOST_CHARACTERS = 1 << 16
"""Characters of the longest override."""
MOST_NESTED = 50
"""Most brackets around one another in a value; text with more is text."""
VALUES = {"true": True, "false": False, "none": None, "null": None}
"""Words that are values, in upper or lower case."""
NO_NAMES = VALUES.keys() | {"yes", "no", "on", "off", "~"}
"""Words that, where a text is expected, are more likely meant as a value than as a name: VALUES, and other
words of YAML for them."""


def override(data: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of the config with the new values. Sections that are missing or None are made, and an item of a
    list is named by its number (`data.train.0=...`). A dict merges into an existing one, or with
    `_delete_=True` in it replaces it.

    A field of text takes the text as it is typed; see `_typed`. `merging.policy=none` removes the other
    settings of merging. `train.steps` leaves the file's `train.epochs` out, and the other way round.
    `a.b+=value` appends a value to a list, or each of a list of values. Raises ConfigError for a key that is
    given twice, or together with a section around it, for a word such as `true` in place of a text, and for
    an empty dict that would change nothing.
    """
    texts = [_parse(item) for item in overrides]
    _refuse_overlaps([key.removesuffix("+") for key, _ in texts])
    changes = [(key, _typed(key.removesuffix("+"), text)) for key, text in texts]
    config = copy.deepcopy(dict(data))
    for key, value in changes:
        if key.endswith("+"):
            _append(config, key.removesuffix("+"), value)
        else:
            _set(config, key, value)
    given = dict(changes)
    if UNMERGED in changes:
        _leave_merging_out(config, set(given))
    for one, other in (LENGTHS, LENGTHS[::-1]):
        if given.get(one) is not None and other not in given:
            _leave_length_out(config, other)
    return config


def parse_value(text: str) -> Any:
    """The value of an override: a Python literal, true/false/null, a comma list, or else the string itself.

    Commas inside brackets and braces do not split, so that a brace pattern of shards stays whole.
    """
    text = text.strip()
    if text.lower() in VALUES:
        return VALUES[text.lower()]
    if _depth(text) > MOST_NESTED:
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        pass
    if text[:1] + text[-1:] in ("[]", "()"):
        return [parse_value(part) for part in parts(text[1:-1])]
    several = parts(text)
    return [parse_value(part) for part in several] if len(several) > 1 else text


def _depth(text: str) -> int:
    """The most brackets that stand open at once."""
    return max(accumulate((char in "([{") - (char in ")]}") for char in text), default=0)


def parts(text: str) -> list[str]:
    """The parts between commas outside of all brackets."""
    found, depth = [""], 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0:
            found.append("")
        else:
            found[-1] += char
    return [part for part in found if part.strip()]


def _parse(item: str) -> tuple[str, str]:
    if len(item) > MOST_CHARACTERS:
        raise ConfigError(
            f"override {item[:40]}... has {len(item)} characters, more than {MOST_CHARACTERS}; write it in a "
            "file"
        )
    key, equals, text = item.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(
            f"override '{item}' is not of the form section.key=value, for instance optim.lr=1e-4"
        )
    return key.strip(), text.strip()


def _refuse_overlaps(keys: list[str]) -> None:
    for i, key in enumerate(keys):
        if key in keys[:i]:
            raise ConfigError(
                f"override {key} is given {keys.count(key)} times; give it once. Was it a brace pattern of "
                "shards? A shell expands those, also the remote one of a launcher on several hosts, where "
                "quotes do not help: write the pattern in the config file, or name the folder"
            )
        if whole := next((other for other in keys if key.startswith(f"{other}.")), None):
            raise ConfigError(f"overrides {whole} and {key} set the same thing; give one of them")


def _typed(key: str, text: str) -> Any:
    """The value of a field. A field of text takes the typed text, also a number, and a list if it may be
    one; none and null are None if it may be None. Raises ConfigError for other words of NO_NAMES without
    quotes."""
    value, kinds = parse_value(text), _members(_declared(key.split(".")))
    if str not in kinds:
        return value
    may_be_none, may_be_list = types.NoneType in kinds, any(get_origin(kind) is list for kind in kinds)
    if value is None and may_be_none:
        return None
    if text.lower() in NO_NAMES and (key, text) != UNMERGED:
        also = f"; for no {key} give none" if may_be_none else ""
        raise ConfigError(
            f"override {key}={text}: give a text. If {text} is a name here, quote it: "
            f"{key}=\"'{text}'\"{also}"
        )
    return value if isinstance(value, str) or (may_be_list and isinstance(value, list | tuple)) else text


def _members(kind: Any) -> tuple[Any, ...]:
    """The members of a union, or the type alone."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _declared(parts: list[str]) -> Any:
    """The declared type of a field; Any where the schema leaves it open or does not know it."""
    kind: Any = RunConfig
    for part in parts:
        section = next((member for member in _members(kind) if dataclasses.is_dataclass(member)), None)
        if section is not None:
            kind = get_type_hints(section).get(part, Any)
        else:
            kind = get_args(kind)[1] if get_origin(kind) is dict else Any
    return kind


def _set(config: dict[str, Any], key: str, value: Any) -> None:
    place: Any = config
    *parents, last = key.split(".")
    for i, part in enumerate(parents):
        index = _index(place, part, key)
        if isinstance(place, dict):
            place.setdefault(part, None)
        if place[index] is None:
            place[index] = {}
        place = place[index]
        if not isinstance(place, dict | list):
            raise ConfigError(
                f"override {key}: {'.'.join(parents[: i + 1])} is {place!r}, which has no parts"
            )
    index = _index(place, last, key)
    old = place.get(last) if isinstance(place, dict) else None
    place[index] = _merged(key, old, value)


def _append(config: dict[str, Any], key: str, value: Any) -> None:
    """Adds to the list of a key, which is made where nothing is there; one text of several becomes a list."""
    old: Any = config
    for part in key.split("."):
        if isinstance(old, list):
            old = old[_index(old, part, key)]
        else:
            old = old.get(part) if isinstance(old, dict) else None
    if isinstance(old, dict) or isinstance(old, int | float):
        raise ConfigError(
            f"override {key}+=: {key} is {old!r}, to which nothing can be appended; give {key}="
        )
    before = [] if old is None else list(old) if isinstance(old, list | tuple) else [old]
    _set(config, key, [*before, *(value if isinstance(value, list | tuple) else [value])])


def _index(place: dict[str, Any] | list[Any], part: str, key: str) -> Any:
    """The key of a dict, or the position in a list."""
    if isinstance(place, dict):
        return part
    if not part.isdecimal() or not part.isascii() or len(part) > 9 or int(part) >= len(place):
        raise ConfigError(
            f"override {key}: '{part}' is no position in a list of {len(place)}; give 0 to {len(place) - 1}"
        )
    return int(part)


def _merged(key: str, old: Any, new: Any) -> Any:
    if not isinstance(new, dict):
        return new
    if old and isinstance(old, dict) and not new:
        raise ConfigError(
            f"override {key}: an empty dict merges into what is there, and so changes nothing; give "
            f"{{'_delete_': True}} to empty it, or the parts that differ, for instance "
            f"{key}.{next(iter(old))}=..."
        )
    rest = {part: value for part, value in new.items() if part != "_delete_"}
    base = old if isinstance(old, dict) and not new.get("_delete_") else {}
    return base | {part: _merged(f"{key}.{part}", base.get(part), value) for part, value in rest.items()}


def _leave_length_out(config: dict[str, Any], key: str) -> None:
    """Removes the file's length of the run, for which the command line gives one of the other kind."""
    section, name = key.split(".")
    if isinstance(config[section], dict) and config[section].pop(name, None) is not None:
        log.info("%s of the config is left out, as the command line gives the other length", key)


def _leave_merging_out(config: dict[str, Any], given: set[str]) -> None:
    """Removes the settings of merging, which were written for another policy, for the unmerged control of a
    run. Settings that the command line gives stay."""
    merging, tasks = config["merging"], config.get("tasks")
    fields = [("merging", merging, name) for name in merging if name not in KEPT_UNMERGED]
    fields.append(("train", config.get("train"), "reduction_range"))
    for name, task in tasks.items() if isinstance(tasks, dict) else ():
        fields.append((f"tasks.{name}", task, "merging"))
    left = []
    for where, section, name in fields:
        field = f"{where}.{name}"
        is_given = any(key == field or key.startswith(f"{field}.") for key in given)
        if isinstance(section, dict) and name in section and not is_given:
            del section[name]
            left.append(field)
    log.info("merging.policy=none leaves out %s", ", ".join(left) or "nothing else")
