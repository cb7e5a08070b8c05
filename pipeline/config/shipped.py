"""Finds the configs that come with the project, wherever it is installed, by names such as
`dtem::debug_cpu.py` and `dtem::task/imagenet.py`."""

import ast
from importlib.resources import files
from pathlib import Path, PurePosixPath

from pipeline.errors import ConfigError
from pipeline.registry import unknown_name

SCOPE = "dtem::"
"""Beginning of such a name, in `--config` and in `_base_`."""


def config_path(name: str | Path) -> Path:
    """The file of `dtem::NAME`, in configs/ or in configs/_base_/; any other name is a path.

    Raises ConfigError, with the nearest name, where no config of the project has the name.
    """
    if not str(name).startswith(SCOPE):
        return Path(name)
    if str(name) == SCOPE:
        raise ConfigError(f"'{SCOPE}' names no config; give one behind it, such as {SCOPE}debug_cpu.py")
    wanted = PurePosixPath(str(name).removeprefix(SCOPE))
    known = _known()
    for relative in (wanted, "_base_" / wanted):
        if str(relative) in known:
            return known[str(relative)]
    names = [path.removeprefix("_base_/") for path in known]
    raise ConfigError(unknown_name("config of the project", wanted, names))


def beside(folder: Path, name: str) -> Path:
    """The file that `name` stands for in a config of `folder`."""
    return config_path(name) if name.startswith(SCOPE) else folder / name


def runs() -> list[str]:
    """Paths in configs/ of the configs that a user would start."""
    return [name for name in _known() if not name.startswith("_base_/")]


def first_line(name: str) -> str:
    """The first sentence of the comment at the top of a config of the project, given by its path in configs/.
    The file is parsed and not run."""
    text = ast.get_docstring(ast.parse(_known()[name].read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).partition(". ")[0].removesuffix(".")


def _known() -> dict[str, Path]:
    """Maps the path of each config in configs/ to its file."""
    root = Path(str(files("dtem"))).joinpath("configs").resolve()
    return {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*.py"))}
