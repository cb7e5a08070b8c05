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
    """Finds nothing itself: it asks the others for the package, once, and calls `then` behind its import."""

    def __init__(self, name: str, then: Callable[[], object]):
        self._name, self._then = name, then

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        from importlib.util import find_spec

        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        loader, run = spec.loader, spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            vars(loader).pop("exec_module", None)
            run(module)
            self._then()

        # on this one loader, which stays what it is for whoever asks the module for its source or data
        loader.exec_module = exec_module
        return spec
