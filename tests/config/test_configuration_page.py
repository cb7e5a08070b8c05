"""The page of settings names every setting, so that a new one is documented."""

import dataclasses
import re
from pathlib import Path

import pytest

from pipeline.config import schema

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
SECTIONS = [value for value in vars(schema).values() if isinstance(value, type) and dataclasses.is_dataclass(value)]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_setting_is_on_the_page(section):
    for field in dataclasses.fields(section):
        assert re.search(rf"`[\w.]*\b{field.name}[`.]|^## {field.name}\b", PAGE, re.M), f"docs/configuration.md does not tell {field.name}"
