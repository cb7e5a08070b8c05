"""Reads `.json` and `.yaml` configs, for instance the resolved config of a stranger's run.

They are data, parsed by readers that cannot run code.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import ConfigError


def repeated(keys: Iterable[Any]) -> Any:
    """The first key that occurs twice; None where none does."""
    seen: set[Any] = set()
    return next((key for key in keys if key in seen or seen.add(key)), None)


def read_json(path: Path) -> dict[str, Any]:
    try:
        return _as_dict(
            json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_without_repetition), path
        )
    except (ValueError, RecursionError) as err:
        raise ConfigError(f"config {path} is not JSON: {err}") from err


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if twice := repeated(key for key, _ in pairs):
        raise ValueError(f"the key '{twice}' is there twice")
    return dict(pairs)


class _PlainLoader(yaml.SafeLoader):
    """Safe YAML without repeated keys, and without aliases, which can make a page of text stand for
    gigabytes."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if twice := repeated(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            raise yaml.YAMLError(f"the key '{twice}' is there twice")
        return super().construct_mapping(node, deep)

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (&name, *name) are not allowed")
        return super().compose_node(parent, index)


_PlainLoader.add_implicit_resolver(  # YAML 1.1 takes 1e-4 for a string
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        return _as_dict(yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_PlainLoader), path)
    # a KeyError, for instance, comes of `!!bool abc`
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as err:
        raise ConfigError(f"config {path} is not plain YAML: {err}") from err


def _as_dict(data: Any, path: Path) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ConfigError(
            f"config {path} holds a {type(data).__name__}; its top level must be a mapping of sections"
        )
    return data
