"""Reads `.py` configs: the user's own programs, with mmengine's `_base_` and `_delete_`. The only file here
that names mmengine.

mmengine merges the files. What it would lose silently (equal keys, a section that is set twice) is refused
before.
"""

import ast
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config

from pipeline.config.modules import import_custom
from pipeline.config.plain_files import repeated
from pipeline.config.shipped import SCOPE, beside, config_path
from pipeline.errors import ConfigError


def read_python(path: Path) -> dict[str, Any]:
    """The settings of the file, which is run. Names with a leading underscore are its own helpers.
    Environment variables are not replaced in it. Raises ConfigError."""
    try:
        _refuse_repeated_keys(path)
        with _named_bases():
            config = Config.fromfile(
                path, use_environment_variables=False, import_custom_modules=False, lazy_import=False
            )
    except ConfigError:
        raise
    # any error, as the file is the user's program
    except Exception as err:
        raise ConfigError(f"config {path} cannot be read: {_where(err)}{type(err).__name__}: {err}") from err
    data = {key: value for key, value in config.to_dict().items() if not key.startswith("_")}
    if "custom_imports" in data:
        folders = [str(path.parent.resolve()), os.getcwd()]
        data["custom_imports"] = import_custom(data["custom_imports"], folders)
    return _join_tasks(data, path)


@contextmanager
def _named_bases() -> Iterator[None]:
    """While it is open, `dtem::NAME` in a line `_base_` is a config of the project."""
    others = Config._get_cfg_path

    def found(cfg_path: str, filename: str) -> tuple[str, str | None]:
        if cfg_path.startswith(SCOPE):
            return str(config_path(cfg_path)), None
        path, scope = others(cfg_path, filename)
        if not os.path.isfile(path):
            raise ConfigError(
                f"config {filename}: its _base_ '{cfg_path}' is not at {path}; give a path from the config's "
                f"folder, or {SCOPE}NAME for a config of the project"
            )
        return path, scope

    Config._get_cfg_path = staticmethod(found)
    try:
        yield
    finally:
        Config._get_cfg_path = staticmethod(others)


def _join_tasks(data: dict[str, Any], path: Path) -> dict[str, Any]:
    """Replaces `tasks=dict(_base_=[FILE, ...], ...)` by the tasks of these files, with the other entries
    merged over them. The files lie beside `path`, or beside the base that has the line. Raises
    ConfigError."""
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
        base = next(
            (found for folder in folders if (found := beside(folder, file)).is_file()), path.parent / file
        )
        if base.suffix != ".py" or not base.is_file():
            raise ConfigError(
                f"config {path}: tasks._base_ names {base}, which is not a config (.py) that is there"
            )
        found = read_python(base).get("tasks") or {}
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
    """Yields the file, then its bases and theirs, as mmengine finds them: in the first line that sets
    `_base_`."""
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
        beside(path.parent, base)
        for base in (found if isinstance(found, list | tuple) else [found])
        if isinstance(base, str)
    ):
        if base.suffix == ".py" and base.is_file():
            yield from _with_bases(base)


def _refuse_repeated_keys(path: Path) -> None:
    """Raises ConfigError for equal keys in the file and its bases, and for sections that are set twice.
    Python keeps the last one; the first, perhaps a task, would be lost silently."""
    for file, tree in _with_bases(path):
        _refuse_lost_sections(file, tree)
        for node in (node for node in ast.walk(tree) if isinstance(node, ast.Dict)):
            if twice := repeated(key.value for key in node.keys if isinstance(key, ast.Constant)):
                raise ConfigError(
                    f"config {file}, line {node.lineno}: the key {twice!r} is there twice; leave one "
                    "out, or rename it"
                )


def _refuse_lost_sections(file: Path, tree: ast.Module) -> None:
    """Raises ConfigError for a section that is set again by an expression that does not read it."""
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


def _where(err: Exception) -> str:
    """`FILE, line N: ` in the innermost module, which is the config or one of its bases. Empty for a syntax
    error, whose message has it."""
    modules = [frame for frame in traceback.extract_tb(err.__traceback__) if frame.name == "<module>"]
    return (
        f"{modules[-1].filename}, line {modules[-1].lineno}: "
        if modules and not isinstance(err, SyntaxError)
        else ""
    )
