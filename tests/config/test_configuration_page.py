"""The page of settings has exactly the settings, each in the table of its own section, with its default."""

import ast
import re
from dataclasses import MISSING
from pathlib import Path

import pytest

from pipeline.config import schema

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
SECTIONS = {
    "backbone": schema.BackboneConfig,
    "merging": schema.MergingConfig,
    "mixing": schema.MixingConfig,
    "balancing": schema.BalancingConfig,
    "objective": schema.ObjectiveConfig,
    "step": schema.StepConfig,
    "optim": schema.OptimConfig,
    "train": schema.TrainConfig,
    "engine": schema.EngineConfig,
    "log": schema.LogConfig,
    "tasks.NAME": schema.TaskConfig,
    "At the top": schema.RunConfig,
}
"""Heading -> what stands under it."""
NESTED = {
    schema.TaskConfig: {"data": schema.DataConfig, "merging": schema.TaskMergingConfig},
    schema.DataConfig: {"augment": schema.AugmentConfig},
    schema.RunConfig: {name: None for name in (*SECTIONS, "tasks")},
}
"""Sections within a section; None: with a heading of their own."""


def settings(section: type) -> set[str]:
    nested = NESTED.get(section, {})
    own = {name for name in section.__dataclass_fields__ if name not in nested}
    return own.union(
        *({f"{name}.{key}" for key in settings(inner)} for name, inner in nested.items() if inner)
    )


def rows(heading: str) -> list[tuple[list[str], str]]:
    """The names of the first column and the text of the second, for each row of the section's table. `.name`
    behind `a.b` is `a.name`."""
    _, _, text = PAGE.partition(f"\n## {heading}\n")
    found = []
    for first, second in re.findall(r"^\| (`.*?`) \| (.*?) \|", text.split("\n## ")[0], re.M):
        names: list[str] = []
        for name in re.findall(r"`([\w.]+)`", first):
            names.append(names[-1].rpartition(".")[0] + name if name.startswith(".") else name)
        found.append((names, second))
    return found


def told(heading: str) -> list[str]:
    return [name for names, _ in rows(heading) for name in names]


def written(cell: str) -> list[object]:
    """The defaults of a cell, as values: words in backticks are texts."""
    if cell in OTHER_WORDS:
        return OTHER_WORDS[cell]
    values = ast.literal_eval("[" + re.sub("`(.*?)`", r"'\1'", cell).replace("required", "'required'") + "]")
    return [() if value in ({}, []) else value for value in values]


def default_of(section: type, name: str) -> object:
    first, _, rest = name.partition(".")
    if rest:
        return default_of(NESTED[section][first], rest)
    field = section.__dataclass_fields__[first]
    if field.default is not MISSING:
        return field.default
    return "required" if field.default_factory is MISSING else field.default_factory() or ()


OTHER_WORDS = {"off": [None, 0, 0], "one is required": [None, None]}
OTHER_WORDS["(3/4, 4/3), None"] = [(3 / 4, 4 / 3), None]
"""Cells that say the defaults in words."""


@pytest.mark.parametrize("heading", SECTIONS)
def test_the_page_has_the_defaults(heading):
    for names, cell in rows(heading):
        values = written(cell)
        values = values * len(names) if len(values) == 1 else values
        assert values == [default_of(SECTIONS[heading], name) for name in names], names


@pytest.mark.parametrize("heading", SECTIONS)
def test_the_page_has_the_settings_of_each_section(heading):
    assert sorted(told(heading)) == sorted(settings(SECTIONS[heading]))
