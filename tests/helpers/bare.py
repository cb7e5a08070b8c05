"""Runs a program as on a machine that has only what some packages need: `python bare.py PROGRAM ARGUMENTS`.

All other packages cannot be found, so that importing them fails as where they are not installed.
"""

import re
import runpy
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from typing import Any

INSTALLED = ("torch", "timm", "triton", "safetensors")


def needed(roots: tuple[str, ...]) -> set[str]:
    """The distributions that these need, and they themselves; extras are left out."""
    found: set[str] = set()
    left = list(roots)
    while left:
        name = _plain(left.pop())
        if name in found:
            continue
        found.add(name)
        try:
            left += [line for line in requires(name) or [] if "extra ==" not in line]
        except PackageNotFoundError:
            continue
    return found


def _plain(requirement: str) -> str:
    found = re.match(r"[\w.-]+", requirement)
    assert found is not None
    return re.sub(r"[-_.]+", "-", found[0]).lower()


class Without:
    """A finder of modules that does not see some packages."""

    def __init__(self, finder: Any, names: frozenset[str]):
        self._finder, self._names = finder, names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return None if name.partition(".")[0] in self._names else self._finder.find_spec(name, path, target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._finder, name)


@cache
def missing() -> frozenset[str]:
    """Names of the modules of all distributions that are not needed, but for this project's own."""
    kept = needed(INSTALLED)
    owned = packages_distributions().items()
    away = {module for module, owners in owned if not kept & {_plain(owner) for owner in owners}}
    return frozenset(away - {"pipeline", "tasks", "launch", "dtem"})


if __name__ == "__main__":
    away = missing()
    assert {"deepspeed", "mmengine", "open_clip", "psutil"} <= away
    sys.meta_path[:] = [Without(finder, away) for finder in sys.meta_path]
    program = Path(sys.argv[1]).resolve()
    sys.argv = sys.argv[1:]
    sys.path[0] = str(program.parent)
    runpy.run_path(str(program), run_name="__main__")
