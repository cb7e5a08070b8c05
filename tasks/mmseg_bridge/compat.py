"""MMSegmentation, whichever family of OpenMMLab's packages is installed: the onedl forks (what `setup.cfg`
asks for) or upstream."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import metadata, util
from types import ModuleType
from typing import Any

from pipeline.errors import ConfigError
from pipeline.extras import extra

COMPILED = "mmcv._ext"
"""mmcv's compiled code."""


class MissingOperators(ModuleType):
    """Replacement of mmcv's compiled code. It has every operator, which raises ConfigError with its name when
    it is called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def refuse(*_: Any, **__: Any) -> None:
            raise ConfigError(
                f"mmcv's operator '{name}' is not compiled here; take a head without it, or build mmcv "
                "with MMCV_WITH_OPS=1"
            )

        return refuse


def import_mmseg() -> None:
    """Imports mmseg's models, before anybody else does. Raises ConfigError where that cannot be."""
    with (
        extra("segmentation"),
        _operators_replaced() if _is_upstream_without_operators() else nullcontext(),
        warnings.catch_warnings(action="ignore"),
    ):
        import mmseg.models  # noqa: F401


def _is_upstream_without_operators() -> bool:
    """Upstream's mmseg imports operators that few heads call; the forks do without. Asked first, as half an
    import cannot be repeated."""
    upstream = any(True for _ in metadata.distributions(name="mmsegmentation"))
    return upstream and util.find_spec("mmcv") is not None and util.find_spec(COMPILED) is None


@contextmanager
def _operators_replaced() -> Iterator[None]:
    """A context for an import, in which MissingOperators replace the compiled ones. Afterwards mmengine,
    which looks for compiled operators, finds none."""
    sys.modules[COMPILED] = MissingOperators(COMPILED)
    try:
        yield
    finally:
        del sys.modules[COMPILED]
