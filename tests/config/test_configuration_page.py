"""The page of settings has exactly the settings, each in the table of its own section."""

import re
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


def told(heading: str) -> list[str]:
    """The first column of the section's table; `.name` behind `a.b` is `a.name`."""
    _, _, text = PAGE.partition(f"\n## {heading}\n")
    rows = re.findall(r"^\| (`.*?`) \|", text.split("\n## ")[0], re.M)
    names: list[str] = []
    for name in (name for row in rows for name in re.findall(r"`([\w.]+)`", row)):
        names.append(names[-1].rpartition(".")[0] + name if name.startswith(".") else name)
    return names


@pytest.mark.parametrize("heading", SECTIONS)
def test_the_page_has_the_settings_of_each_section(heading):
    assert sorted(told(heading)) == sorted(settings(SECTIONS[heading]))
