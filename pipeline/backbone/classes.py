"""Classes of models and blocks that merge: a library's object becomes one of ours by its class alone.

Such a class has two bases, our host and the library's own class. So the parts of the object and their names
stay the library's, and the way back is exact.
"""

from functools import cache
from typing import Any, TypeVar, cast

from torch import nn

from pipeline.errors import ConfigError

M = TypeVar("M", bound=nn.Module)


class Host(nn.Module):
    """What merges, as a class that is joined with a library's while the program runs."""

    @classmethod
    def name_for(cls, library: type[nn.Module]) -> str:
        """Name of the class of objects of `library` that merge."""
        return f"Merging{library.__name__}"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A class that was made of two is no attribute of a module, so a pickle names both."""
        return empty_like, bases_of(self), self.__getstate__()


@cache
def class_of(host: type[Host], library: type[nn.Module]) -> type[Host]:
    """The class of objects of `library` that merge as the host says."""
    return type(host.name_for(library), (host, library), {"__module__": library.__module__})


def as_class(part: nn.Module, kind: type[M]) -> M:
    """The object itself, which has this class now."""
    part.__class__ = kind
    return cast(M, part)


def bases_of(part: nn.Module) -> tuple[type[Host], type[nn.Module]]:
    """The host and the library's class that the object's class was made of. Raises ConfigError where
    something made another class of it since."""
    host, library, *_ = *type(part).__bases__, nn.Module
    if not issubclass(host, Host) or class_of(host, library) is not type(part):
        raise ConfigError(
            f"the model became {type(part).__name__} after it was patched, by FSDP or the like; unpatch or "
            "copy it before"
        )
    return host, library


def empty_like(host: type[Host], library: type[nn.Module]) -> Host:
    """An object that merges without anything in it, for a pickle to fill."""
    kind = class_of(host, library)
    return kind.__new__(kind)


def label(kind: type) -> str:
    """`PACKAGE.CLASS`, by which a class is known whose package is not imported here."""
    return f"{kind.__module__.partition('.')[0]}.{kind.__name__}"
