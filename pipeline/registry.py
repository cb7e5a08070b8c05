"""Registries: they map names in a config to the classes that the names may mean."""

import difflib
import inspect
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar, Union, get_args, get_origin, get_type_hints

from pipeline.errors import ConfigError

T = TypeVar("T")
Factory = TypeVar("Factory", bound=Callable[..., Any])


def unknown_name(kind: str, name: object, known: Iterable[str]) -> str:
    """A line that names the unknown `name`, the nearest known name, and all known names (of very many the
    nearest few)."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=5, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    listed = known if len(known) <= 40 else [*near, f"{len(known)} in all"]
    return f"unknown {kind} '{name}'{hint} (known: {', '.join(listed) or 'none'})"


class Registry(Generic[T]):
    """A closed table of factories. An unknown name is an error that lists the known ones."""

    def __init__(self, kind: str):
        self.kind = kind
        self._factories: dict[str, Callable[..., T]] = {}

    def register(self, name: str) -> Callable[[Factory], Factory]:
        """Decorator that files a class or function under `name`; a name is given once."""

        def add(factory: Factory) -> Factory:
            if name in self._factories:
                raise ValueError(f"{self.kind} '{name}' is registered twice")
            self._factories[name] = factory
            return factory

        return add

    def get(self, name: str) -> Callable[..., T]:
        """The factory of `name`. Raises ConfigError with the nearest name and the full list."""
        if name not in self._factories:
            raise ConfigError(
                f"{unknown_name(self.kind, name, self._factories)}; if it is your own, name the module that "
                "registers it: --import MODULE"
            )
        return self._factories[name]

    def build(self, name: str, /, *args: object, **options: object) -> T:
        """Calls the factory. Raises ConfigError as `check` does. Errors inside the factory stay as they
        are."""
        self.check(name, *args, **options)
        return self.get(name)(*args, **options)

    def check(self, name: str, /, *args: object, **options: object) -> None:
        """Raises ConfigError for an unknown or missing option, and for an option of another type than the
        factory declares. Calls nothing."""
        factory = self.get(name)
        signature = inspect.signature(factory)
        try:
            signature.bind(*args, **options)
        except TypeError as err:
            known = ", ".join(p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY)
            raise ConfigError(f"{self.kind} '{name}': {err} (its options: {known or 'none'})") from err
        kinds = get_type_hints(factory.__init__ if isinstance(factory, type) else factory)
        for option, value in options.items():
            if not _may_be(kinds.get(option, Any), value):
                kind = inspect.formatannotation(kinds[option])
                raise ConfigError(f"{self.kind} '{name}': {option} is {value!r}; give a value of type {kind}")

    def names(self) -> list[str]:
        return sorted(self._factories)


def _may_be(kind: Any, value: object) -> bool:
    """Whether a value can be of a declared type, as far as that consists of types of plain data."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_may_be(member, value) for member in args)
    if kind in (bool, int, float, str, types.NoneType):
        return type(value) is kind or (kind is float and type(value) is int)
    if origin is Mapping:
        return isinstance(value, Mapping)
    if origin is Sequence:
        return isinstance(value, list | tuple) and all(_may_be(args[0], item) for item in value)
    return True
