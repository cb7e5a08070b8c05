"""Writes the counts of docs/reliability.md from the record, so that none of them is typed.

    python benchmarks/reliability_table.py     # after the record has changed

`tests/benchmarks/test_reliability.py` fails where a table is not what the record says.
"""

import json
from textwrap import fill
from typing import Any

from page_table import filled, table
from results_table import ROOT

PAGE = ROOT / "docs/reliability.md"
RECORD = ROOT / "benchmarks/records/reliability.json"


def entries() -> list[dict[str, Any]]:
    return json.loads(RECORD.read_text())["entries"]


def counts() -> str:
    """A table for each claim of the record."""
    parts = []
    for entry in entries():
        rows = [(one["name"], _told(one["counts"])) for one in entry["results"]]
        claim = _prose(f"{entry['claim']}:")
        source = _prose(f"commit {entry['commit'][:7]}, `{entry['command']}`")
        parts.append("\n\n".join((claim, table(("case", "counts"), rows), source)))
    return "\n\n".join(parts)


def _prose(text: str) -> str:
    return fill(text, 110, break_on_hyphens=False, break_long_words=False)


def _told(found: dict[str, float]) -> str:
    return "; ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in found.items())


TABLES = {"counts": counts}


def main() -> None:
    PAGE.write_text(filled(PAGE.read_text(), TABLES))
    print(f"wrote {PAGE.relative_to(ROOT)} from {RECORD.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
