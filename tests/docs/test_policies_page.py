"""docs/policies.md has a row for each policy of the project, and the row says what the policy declares."""

import re

import pytest
from policies_table import COLUMN, PAGE, filled, rows

from launch.report import words
from pipeline.merging.policies import POLICIES

TEXT = PAGE.read_text()
ROWS = rows(TEXT)
OURS = [name for name in POLICIES.names() if POLICIES.get(name).__module__.startswith("pipeline.merging.")]
"""Without those that a test or a user registers."""
STATED = ("source", "its own figure", "where they differ", "parameters")


def test_every_policy_has_a_row_and_every_row_a_policy():
    assert sorted(ROWS) == OURS, "give each policy of pipeline/merging/policies its row in docs/policies.md"
    assert set(OURS) <= words.POLICIES.keys(), "charts and boards call each by its name"


@pytest.mark.parametrize("name", OURS)
def test_a_row_says_what_the_policy_declares(name):
    row, policy = ROWS[name], POLICIES.build(name)
    assert row["needs"] == (", ".join(sorted(policy.needs)) or "nothing")
    assert row["conserves"] == ("yes" if policy.conserves else "no")
    assert (row["training"] == "control") == policy.control
    assert (row["training"] in ("none", "control")) == (not (policy.learned or policy.masks))
    assert (row["parameters"] == "none") == (not (policy.learned or policy.masks))
    assert all(row[column] for column in STATED)


def test_the_figures_are_those_of_the_records():
    assert filled(TEXT) == TEXT, "run python benchmarks/policies_table.py"
    assert re.fullmatch(r"\d+\.\d", ROWS["tome"][COLUMN])


def test_a_typed_figure_is_found():
    typed = TEXT.replace(f"| {ROWS['tome'][COLUMN]} |", "| 99.9 |")
    assert typed != TEXT and filled(typed) == TEXT


def test_a_table_and_a_plot_name_each_policy_as_its_authors_do():
    assert set(words.POLICIES) == set(OURS)
