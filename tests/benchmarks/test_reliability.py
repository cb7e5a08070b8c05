"""docs/reliability.md has the counts of its record."""

import pytest
from page_table import filled
from reliability_table import PAGE, TABLES, entries


def test_the_page_has_the_tables_that_the_record_gives():
    page = PAGE.read_text()
    assert filled(page, TABLES) == page
    assert filled(page.replace("| case |", "| kase |"), TABLES) == page, "a changed cell is found"


NOTHING = ("lost", "later", "without", "failed", "wrong")
"""Words in the names of counts that shall be 0."""


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry["claim"][:40])
def test_the_record_shows_its_claim(entry):
    for one in entry["results"]:
        bad = {name: n for name, n in one["counts"].items() if set(NOTHING) & set(name.split("_"))}
        assert not any(n for name, n in bad.items() if not name.startswith("most")), one
