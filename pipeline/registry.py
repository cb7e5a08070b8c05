"""Names in a config, mapped to the classes that are allowed behind them."""

import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from pipeline.errors import ConfigError

T = TypeVar("T")


def unknown_name(kind: str, name: object, known: Iterable[str]) -> str:
    """One line that says `name` is unknown, which known name is nearest, and what all of them are (the nearest few of very many)."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=5, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    listed = known if len(known) <= 40 else [*near, f"{len(known)} in all"]
    return f"unknown {kind} '{name}'{hint} (known: {', '.join(listed) or 'none'})"


class Registry(Generic[T]):
    """A closed table of factories: a name that is not in it is an error that lists what is."""

    def __init__(self, kind: str):
        self.kind = kind
        self._factories: dict[str, Callable[..., T]] = {}

    def register(self, name: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
        """Decorator that files a class or function under `name`; a name is given once."""

        def add(factory: Callable[..., T]) -> Callable[..., T]:
            if name in self._factories:
                raise ValueError(f"{self.kind} '{name}' is registered twice")
            self._factories[name] = factory
            return factory

        return add

    def get(self, name: str) -> Callable[..., T]:
        """The factory behind `name`; raises ConfigError with the nearest name and the full list."""
        if name not in self._factories:
            raise ConfigError(unknown_name(self.kind, name, self._factories))
        return self._factories[name]

    def build(self, name: str, /, *args: object, **options: object) -> T:
        """Calls the factory; options that it does not take raise ConfigError."""
        factory = self.get(name)
        try:
            return factory(*args, **options)
        except TypeError as err:
            known = ", ".join(p.name for p in inspect.signature(factory).parameters.values() if p.kind is p.KEYWORD_ONLY)
            raise ConfigError(f"{self.kind} '{name}': {err} (its options: {known or 'none'})") from err

    def names(self) -> list[str]:
        return sorted(self._factories)
