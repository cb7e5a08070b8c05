"""Modules of the user's own, which register tasks, policies, data sets and objectives.

The user names them: by `--import`, or by `custom_imports` in a `.py` config, which is a program of his
anyway. A resolved config keeps their names, and nothing that is read as data imports them.
"""

import importlib
import logging
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pipeline.errors import ConfigError

log = logging.getLogger(__name__)
_IMPORTED: dict[str, tuple[tuple[str, ...], str]] = {}
"""Name of a module -> folders, and what named it, in the order of the imports."""


def import_named(name: str, folders: Sequence[str], said: str) -> None:
    """Imports a module, looked up as Python does, and then in the folders. said: what names it. Raises
    ConfigError where that cannot be, or the module itself fails."""
    added = [*folders]
    sys.path.extend(added)
    try:
        importlib.import_module(name)
        _IMPORTED.setdefault(name, (tuple(folders), said))
    # any error, as the module is the user's program
    except Exception as err:
        raise ConfigError(f"{said} {name}: {_why(err, name, folders)}") from err
    finally:
        # the module may have changed the list too
        sys.path[:] = [path for path in sys.path if not any(path is own for own in added)]


class Imported:
    """The modules that this process has imported by their names. Who unpickles it has imported them too, and
    what is sent behind it may be of them: a process that is not forked does not know the folders."""

    def __reduce__(self) -> tuple[Callable[..., "Imported"], tuple[Any, ...]]:
        return _imported_anew, (dict(_IMPORTED),)


def _imported_anew(modules: Mapping[str, tuple[Sequence[str], str]]) -> Imported:
    for name, (folders, said) in modules.items():
        import_named(name, folders, said)
    return Imported()


def _why(err: Exception, name: str, folders: Sequence[str]) -> str:
    """What is wrong: the name, or the module at a line of it."""
    lines = [frame for frame in traceback.extract_tb(err.__traceback__) if "importlib" not in frame.filename]
    if len(lines) > 1:
        return f"{lines[-1].filename}, line {lines[-1].lineno}: {type(err).__name__}: {err}"
    where = f"; give the name of a module, without .py, that is installed or in {' or '.join(folders)}"
    return f"{err}{'' if isinstance(err, SyntaxError) else where}"


def import_custom(found: Any, folders: Sequence[str]) -> list[str]:
    """Imports what `custom_imports` of a `.py` config names, in mmengine's form, `dict(imports=[...],
    allow_failed_imports=False)`, or a list. Returns the names. Raises ConfigError."""
    section = found if isinstance(found, dict) else {"imports": found}
    names = section.get("imports", [])
    names = [names] if isinstance(names, str) else names
    may_fail = section.get("allow_failed_imports", False)
    if (
        section.keys() - {"imports", "allow_failed_imports"}
        or not isinstance(names, list | tuple)
        or not all(isinstance(name, str) for name in names)
        or not isinstance(may_fail, bool)
    ):
        raise ConfigError(
            f"custom_imports is {found!r}; give dict(imports=['my_module'], allow_failed_imports=False)"
        )
    for name in names:
        try:
            import_named(name, folders, "custom_imports")
        except ConfigError as err:
            if not may_fail:
                raise
            log.warning("%s", err)
    return list(names)


def tell_not_imported(names: Iterable[str], source: str) -> None:
    """Says which modules a config that is data names, and that they were not imported."""
    if lacking := [name for name in names if name not in sys.modules]:
        options = " ".join(f"--import {name}" for name in lacking)
        log.warning(
            "%s names modules of its own, which are not imported, as it is data: if you trust them, give %s",
            source,
            options,
        )
