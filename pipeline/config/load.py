"""Reads config files as `RunConfig`.

A `.py` config is the user's own program (`pipeline.config.python_files`); a `.json` or `.yaml` file is data
(`pipeline.config.plain_files`).
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.config.build import build_dataclass, plain
from pipeline.config.modules import tell_not_imported
from pipeline.config.overrides import override
from pipeline.config.places import in_their_folder
from pipeline.config.plain_files import read_json, read_yaml
from pipeline.config.schema import RunConfig
from pipeline.config.shipped import config_path
from pipeline.errors import ConfigError
from pipeline.redact import MARK, redacted

MAX_BYTES = 1 << 20
"""Size of the largest config, which is a page of text."""


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """The run that a file describes, after `a.b=value` overrides.

    path: of a file, or `dtem::NAME`. `.py`: mmengine's format. `.json`, `.yaml`, `.yml`: plain data. Raises
    ConfigError with all mistakes at once.
    """
    path = config_path(path)
    if path.is_dir():
        raise ConfigError(f"config {path} is a folder; give a file, for instance a run's config.json")
    if not path.is_file():
        raise ConfigError(
            f"config {path} does not exist; the ones that come with the project are in configs/, under names "
            "such as dtem::debug_cpu.py"
        )
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError(
            f"config {path} has {path.stat().st_size} bytes, more than {MAX_BYTES}; is it a config?"
        )
    readers = {".py": _read_python, ".json": read_json, ".yaml": read_yaml, ".yml": read_yaml}
    if path.suffix not in readers:
        raise ConfigError(
            f"config {path} ends in '{path.suffix}'; give a file that ends in {', '.join(readers)}"
        )
    try:
        data = override(in_their_folder(readers[path.suffix](path)), overrides)
        _refuse_marks(data, str(path))
        config = build_dataclass(RunConfig, data, str(path))
    except RecursionError as err:
        raise ConfigError(f"config {path} is nested too deeply") from err
    if path.suffix != ".py":
        tell_not_imported(config.custom_imports, str(path))
    return config


def to_plain(config: RunConfig) -> dict[str, Any]:
    """The run with all defaults, as data that JSON can hold. `from_plain` is the inverse."""
    return plain(config)


def to_saved(config: RunConfig) -> dict[str, Any]:
    """`to_plain` as it is written to files: without secrets."""
    return redacted(to_plain(config))


def from_plain(data: dict[str, Any], overrides: Iterable[str] = ()) -> RunConfig:
    """The inverse of `to_plain`, after `a.b=value` overrides. Raises ConfigError for anything that the schema
    does not know."""
    return build_dataclass(RunConfig, override(data, overrides) if overrides else data, "resolved config")


def digest(config: RunConfig) -> str:
    """sha256 of the canonical JSON: equal for equal runs, in whatever form they were written, whatever
    secrets they hold, in whatever folder they were started."""
    data = to_saved(replace(config, folder=None))
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _refuse_marks(data: Any, source: str, path: str = "") -> None:
    """Raises ConfigError for a value that was a secret, and left out when the config was saved."""
    if isinstance(data, dict | list | tuple):
        for name, item in data.items() if isinstance(data, dict) else enumerate(data):
            _refuse_marks(item, source, f"{path}.{name}" if path else str(name))
    elif data == MARK:
        raise ConfigError(
            f"{source}: {path} is {MARK}: a secret that was left out when the config was saved; give it by "
            f"--cfg-options {path}=..."
        )


def _read_python(path: Path) -> dict[str, Any]:
    from pipeline.config.python_files import read_python  # plain files are read without mmengine

    return read_python(path)
