"""The border between files and `RunConfig`; the only file that names mmengine.

A `.py` config is the user's own program, with mmengine's `_base_` and `_delete_`. A `.json` or `.yaml` file
is data, for instance the resolved config of a stranger's run: it is parsed by readers that cannot run code.
"""

import ast
import hashlib
import json
import re
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from pipeline.config.build import build_dataclass, plain
from pipeline.config.overrides import override
from pipeline.config.schema import RunConfig
from pipeline.errors import ConfigError

MAX_BYTES = 1 << 20
"""A config is a page of text; anything beyond this is not one."""


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """The run that a file describes, after `a.b=value` overrides.

    `.py`: mmengine's format. `.json`, `.yaml`, `.yml`: plain data. Raises ConfigError with all mistakes at
    once.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(
            f"config {path} does not exist; the ones that come with the project are in configs/"
        )
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError(
            f"config {path} has {path.stat().st_size} bytes, more than {MAX_BYTES}; is it a config?"
        )
    readers = {".py": _read_python, ".json": _read_json, ".yaml": _read_yaml, ".yml": _read_yaml}
    if path.suffix not in readers:
        raise ConfigError(
            f"config {path} ends in '{path.suffix}'; give a file that ends in {', '.join(readers)}"
        )
    try:
        return build_dataclass(RunConfig, override(readers[path.suffix](path), overrides), str(path))
    except RecursionError as err:
        raise ConfigError(f"config {path} is nested too deeply") from err


def to_plain(config: RunConfig) -> dict[str, Any]:
    """The whole run, defaults included, as data that JSON can hold; `from_plain` takes it back."""
    return plain(config)


def from_plain(data: dict[str, Any], overrides: Iterable[str] = ()) -> RunConfig:
    """The inverse of `to_plain`, after `a.b=value` overrides; raises ConfigError on anything that the schema
    does not know."""
    return build_dataclass(RunConfig, override(data, overrides) if overrides else data, "resolved config")


def digest(config: RunConfig) -> str:
    """sha256 of the canonical JSON: equal for equal runs, however they were written down."""
    text = json.dumps(to_plain(config), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _read_python(path: Path) -> dict[str, Any]:
    """Runs the file; names with a leading underscore are its own helpers. No text of the environment enters
    the program."""
    from mmengine.config import Config

    try:
        _refuse_repeated_keys(path)
        config = Config.fromfile(
            path, use_environment_variables=False, import_custom_modules=False, lazy_import=False
        )
    except ConfigError:
        raise
    except Exception as err:  # whatever the user's program raises
        raise ConfigError(f"config {path} cannot be read: {_where(err)}{type(err).__name__}: {err}") from err
    data = {key: value for key, value in config.to_dict().items() if not key.startswith("_")}
    return _join_tasks(data, path)


def _join_tasks(data: dict[str, Any], path: Path) -> dict[str, Any]:
    """`tasks=dict(_base_=[FILE, ...], ...)`: the tasks of several files, over which the other entries merge.
    The files lie beside `path` or, where it inherited the line, beside the base that has it."""
    from mmengine.config import Config

    tasks = data.get("tasks")
    if not isinstance(tasks, dict) or "_base_" not in tasks:
        return data
    files = tasks.pop("_base_")
    if not isinstance(files, list | tuple) or not all(isinstance(file, str) for file in files):
        raise ConfigError(f"config {path}: tasks._base_ is {files!r}; give a list of config files")
    folders = list(dict.fromkeys(file.parent for file, _ in _with_bases(path)))
    joined: dict[str, Any] = {}
    origin: dict[str, str] = {}
    twice: list[str] = []
    for file in files:
        base = next((folder / file for folder in folders if (folder / file).is_file()), path.parent / file)
        if base.suffix != ".py" or not base.is_file():
            raise ConfigError(
                f"config {path}: tasks._base_ names {base}, which is not a config (.py) that is there"
            )
        found = _read_python(base).get("tasks") or {}
        twice += [f"'{name}' is in {origin[name]} and in {file}" for name in found if name in joined]
        joined |= found
        origin |= dict.fromkeys(found, file)
    if twice:
        raise ConfigError(
            f"config {path}: two tasks of one name: {'; '.join(twice)}; leave one out, or rename it in "
            "a file of your own"
        )
    return data | {"tasks": Config._merge_a_into_b(tasks, joined)}


def _with_bases(path: Path) -> Iterator[tuple[Path, ast.Module]]:
    """The file, then its bases and theirs, as mmengine finds them: in the first line that sets `_base_`."""
    text = path.read_text(encoding="utf-8")
    if text.startswith("\ufeff"):
        raise ConfigError(
            f"config {path} begins with a byte order mark, which mmengine cannot read; save it as UTF-8 "
            "without BOM"
        )
    tree = ast.parse(text, str(path))  # mmengine would report a syntax error under a temporary name
    yield path, tree
    lines = (
        node
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_base_"
    )
    try:
        found = ast.literal_eval(line.value) if (line := next(lines, None)) is not None else []
    except ValueError:
        return
    for base in (
        path.parent / base
        for base in (found if isinstance(found, list | tuple) else [found])
        if isinstance(base, str)
    ):
        if base.suffix == ".py" and base.is_file():
            yield from _with_bases(base)


def _refuse_repeated_keys(path: Path) -> None:
    """In the file and its bases. Python keeps the last of two equal keys, or of two values of a section; the
    first, a task perhaps, would be lost without a word."""
    for file, tree in _with_bases(path):
        _refuse_lost_sections(file, tree)
        for node in (node for node in ast.walk(tree) if isinstance(node, ast.Dict)):
            if twice := _repeated(key.value for key in node.keys if isinstance(key, ast.Constant)):
                raise ConfigError(
                    f"config {file}, line {node.lineno}: the key {twice!r} is there twice; leave one "
                    "out, or rename it"
                )


def _refuse_lost_sections(file: Path, tree: ast.Module) -> None:
    """Where a section is set again, by an expression that does not read it."""
    seen: set[str] = set()
    for line in (node for node in tree.body if isinstance(node, ast.Assign)):
        names = {
            target.id
            for target in line.targets
            if isinstance(target, ast.Name) and not target.id.startswith("_")
        }
        read = {node.id for node in ast.walk(line.value) if isinstance(node, ast.Name)}
        if lost := (names & seen) - read:
            raise ConfigError(
                f"config {file}, line {line.lineno}: {min(lost)} is set twice, and the first would be "
                "lost; join the two"
            )
        seen |= names


def _repeated(keys: Iterable[Any]) -> Any:
    """The first key that is there twice, or None."""
    seen: set[Any] = set()
    return next((key for key in keys if key in seen or seen.add(key)), None)


def _where(err: Exception) -> str:
    """`FILE, line N: ` of the innermost module: the config or one of its bases. A syntax error says so
    itself."""
    modules = [frame for frame in traceback.extract_tb(err.__traceback__) if frame.name == "<module>"]
    return (
        f"{modules[-1].filename}, line {modules[-1].lineno}: "
        if modules and not isinstance(err, SyntaxError)
        else ""
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return _as_dict(
            json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_without_repetition), path
        )
    except (ValueError, RecursionError) as err:
        raise ConfigError(f"config {path} is not JSON: {err}") from err


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if twice := _repeated(key for key, _ in pairs):
        raise ValueError(f"the key '{twice}' is there twice")
    return dict(pairs)


class _PlainLoader(yaml.SafeLoader):
    """Safe YAML without repeated keys, and without aliases, which can make a page of text stand for
    gigabytes."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if twice := _repeated(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            raise yaml.YAMLError(f"the key '{twice}' is there twice")
        return super().construct_mapping(node, deep)

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (&name, *name) are not allowed")
        return super().compose_node(parent, index)


_PlainLoader.add_implicit_resolver(  # YAML 1.1 takes 1e-4 for a string
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        return _as_dict(yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_PlainLoader), path)
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as err:
        raise ConfigError(f"config {path} is not plain YAML: {err}") from err  # `!!bool abc` is a KeyError


def _as_dict(data: Any, path: Path) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ConfigError(
            f"config {path} holds a {type(data).__name__}; its top level must be a mapping of sections"
        )
    return data
