"""Work that waits for a package which a program may import, or not: `import dtem` alone stays cheap."""

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


def when_imported(name: str, then: Callable[[], object]) -> None:
    """Calls `then` once the package `name` was imported; now, where it is there already."""
    if name in sys.modules:
        then()
    else:
        sys.meta_path.insert(0, _Waiting(name, then))


class _Waiting:
    """Finds nothing itself: it asks the others for the package, and calls `then` behind its first import.
    Many ask only to know whether a package is there."""

    def __init__(self, name: str, then: Callable[[], object]):
        self._name, self._then, self._asks = name, then, False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name or self._asks:
            return None
        from importlib.util import find_spec

        self._asks = True
        try:
            spec = find_spec(fullname)
        finally:
            self._asks = False
        if spec is None or spec.loader is None:
            return spec
        loader, run = spec.loader, spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            vars(loader).pop("exec_module", None)
            run(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                self._then()

        # on this one loader, which stays what it is for whoever asks the module for its source or data
        loader.exec_module = exec_module
        return spec
