"""The README's table of all policies is what the records of the boards say: a typed figure fails."""

import re
from statistics import mean

from boards_table import BOARDS, TABLES, boards
from page_table import filled
from results_table import README, results_of

PAGE = README.read_text()
ROWS = {line.split(" | ")[0].strip("| `"): line.split(" | ")[2:] for line in boards().splitlines()[2:]}


def test_the_readme_has_the_table_that_the_records_give():
    assert filled(PAGE, TABLES) == PAGE


def test_a_changed_cell_is_found():
    changed = PAGE.replace(boards(), re.sub(r"(\*\*)\d", r"\g<1>9", boards(), count=1))
    assert changed != PAGE
    assert filled(changed, TABLES) != changed


def test_each_column_has_its_best_policy_in_bold():
    """Read again without the script's own ways."""
    column = 0
    for board in BOARDS:
        for result in results_of(board.record):
            found = {name: mean(values) for name, values in result[board.column].items() if name != "none"}
            best = board.best(found, key=found.__getitem__)
            bold = [name for name, cells in ROWS.items() if "**" in cells[column]]
            assert bold == [best]
            assert ROWS[best][column].strip("|* ") == f"{board.scale * found[best]:.1f}"
            column += 1
    assert all(len(cells) == column for cells in ROWS.values())
