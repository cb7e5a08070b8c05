"""Writes the column `ours` of docs/policies.md from the records, so that no figure in it is typed.

    python benchmarks/policies_table.py     # after a record has changed, or a policy has a new row

`tests/docs/test_policies_page.py` fails where the column is not what the records say.
"""

import json
import re
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/policies.md"
RECORDS = ("board_cifar10", "cifar10_dtem_vs_tome")
"""The first that is there and has the policy counts."""
POINT = "50% of the MACs"
COLUMN = "ours"
_ROW = re.compile(r"^\| `(\w+)` \|.*$", re.M)


def figure(policy: str) -> str:
    """The mean over seeds of the policy's top-1 at the point; `-` where no record has it."""
    for record in RECORDS:
        path = ROOT / f"benchmarks/records/{record}.json"
        results = json.loads(path.read_text())["results"] if path.is_file() else []
        found = next((one["scores"] for one in results if one["name"].endswith(POINT)), {})
        if policy in found:
            return f"{mean(found[policy]):.1f}"
    return "-"


def header(page: str) -> list[str]:
    """The names of the columns of the page's table."""
    return _cells(next(line for line in page.splitlines() if line.startswith("| policy |")))


def rows(page: str) -> dict[str, dict[str, str]]:
    """Policy -> column -> cell, of the page's table."""
    names = header(page)
    return {
        found[1]: dict(zip(names, _cells(found[0]), strict=True))
        for found in _ROW.finditer(page)
        if len(_cells(found[0])) == len(names)
    }


def filled(page: str) -> str:
    """The page with the column as the records have it."""
    place = header(page).index(COLUMN)

    def line(found: re.Match[str]) -> str:
        cells = _cells(found[0])
        cells[place] = figure(found[1])
        return f"| {' | '.join(cells)} |"

    return _ROW.sub(line, page)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split(" | ")]


def main() -> None:
    PAGE.write_text(filled(PAGE.read_text()))


if __name__ == "__main__":
    main()
