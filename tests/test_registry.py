"""What a registry refuses as the user's mistake, and what it lets through as ours."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

import tasks  # noqa: F401 - fills the registry
from pipeline.balancing import BALANCING, Balancing
from pipeline.data.samples.protocol import DATASETS
from pipeline.data.samples.text import TOKENIZERS
from pipeline.errors import ConfigError
from pipeline.interfaces import Task
from pipeline.merging.policies import POLICIES
from pipeline.merging.policy import MergePolicy
from pipeline.model import TASKS
from pipeline.objectives import OBJECTIVES, Objective
from pipeline.registry import Registry

CLASSES = {TASKS: Task, BALANCING: Balancing, POLICIES: MergePolicy, OBJECTIVES: Objective}
"""Registry -> what its classes are."""
NEEDED = {TASKS: 1, DATASETS: 2, BALANCING: 1, POLICIES: 0, OBJECTIVES: 0, TOKENIZERS: 0}
"""Registry -> arguments that the project itself gives."""
ENTRIES = [(registry, name) for registry in NEEDED for name in registry.names()]
THINGS: Registry[Any] = Registry("thing")


@THINGS.register("x")
class Thing:
    def __init__(
        self,
        given: object,
        *,
        a: int = 0,
        b: float | None = None,
        c: Sequence[int] = (),
        d: str | Mapping[str, Any] = "",
    ):
        self.size = len(given)  # ours to break


@pytest.mark.parametrize("registry", CLASSES, ids=lambda registry: registry.kind)
def test_every_entry_is_of_the_registrys_class(registry):
    for name in registry.names():
        assert issubclass(registry.get(name), CLASSES[registry]), f"{registry.kind} '{name}'"


def test_an_error_inside_of_a_constructor_is_its_own():
    with pytest.raises(TypeError, match="has no len"):
        THINGS.build("x", 3)
    assert THINGS.build("x", "abc", a=1, b=2, c=[1], d={}).size == 3


@pytest.mark.parametrize(
    "options, said",
    [
        ({"e": 1}, "unexpected keyword argument 'e' \\(its options: a, b, c, d\\)"),
        ({"a": "1"}, "a is '1'; give a value of type int"),
        ({"a": True}, "a is True"),
        ({"a": 1.5}, "a is 1.5"),
        ({"b": "x"}, "b is 'x'; give a value of type float | None"),
        ({"c": 3}, "c is 3; give a value of type collections.abc.Sequence"),
        ({"c": ["x"]}, r"c is \['x'\]"),
        ({"d": 3}, "d is 3"),
    ],
)
def test_options_of_another_kind_are_the_users_mistake(options, said):
    with pytest.raises(ConfigError, match=f"thing 'x': .*{said}"):
        THINGS.build("x", "abc", **options)


@pytest.mark.parametrize(
    "registry, name", ENTRIES, ids=lambda value: value if isinstance(value, str) else value.kind
)
def test_an_unknown_option_of_anything_registered_is_the_users_mistake(registry, name):
    with pytest.raises(ConfigError, match=f"{registry.kind} '{name}': .*its options: "):
        registry.build(name, *[{}] * NEEDED[registry], no_such_option=1)
