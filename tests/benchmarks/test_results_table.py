"""The README's table of results is what the records say: a typed figure fails."""

import json
from statistics import mean

import pytest
import results_table
from results_table import COLUMNS, NONE, README, TABLE, Scored, found_in, results_of, table, tome_below

ROWS = [
    dict(zip(COLUMNS, (cell.strip() for cell in line.strip("|\n ").split(" | ")), strict=True))
    for line in found_in(README.read_text()).splitlines()[2:]
]
COMPARISONS = sorted(
    path.stem for path in (results_table.ROOT / "benchmarks/records").glob("*_dtem_vs_tome*.json")
)


def test_the_readme_has_the_table_that_the_records_give():
    assert found_in(README.read_text()) == table()


def test_a_changed_cell_is_found():
    assert found_in(README.read_text().replace(ROWS[0]["ours"], "99.9")) != table()


def test_every_comparison_of_policies_has_a_row_for_each_point_of_its_main_metrics():
    assert sorted({part.record for part in TABLE if isinstance(part, Scored)}) == COMPARISONS
    for record in COMPARISONS:
        metrics = tuple(part.metric for part in TABLE if part.record == record)
        points = [one for one in results_of(record) if one["name"].startswith(metrics)]
        left_out = {one["name"].partition(",")[0] for one in results_of(record) if one not in points}
        assert len(points) == sum(f"[{record}]" in row["record"] for row in ROWS)
        assert left_out <= {"BLEU-4"}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['task']}, {row['data']}, {row['MACs']}")
def test_a_row_is_one_point_of_its_record(row):
    """Read again without the script's own ways: the figures of a row stand together in one result."""
    path = row["record"].partition("(")[2].rstrip(")")
    results = json.loads((results_table.ROOT / path).read_text())["results"]
    assert any(says(result, row) for result in results)


def says(result: dict, row: dict) -> bool:
    if "scores" not in result:
        return float(row["ours"]) == pytest.approx(result.get("ratio", {}).get("median", 0), abs=5.1e-3)
    told = {"ours": "dtem", "ToMe": "tome", "untrained": "dtem_untrained", "unmerged": "none"}
    near = [
        float(row[column]) == pytest.approx(mean(result["scores"][policy]), abs=5.1e-2)
        for column, policy in told.items()
        if policy in result["scores"]
    ]
    share = float(row["MACs"].removesuffix(" %")) / 100
    return all(near) and share == pytest.approx(result["macs_ratio"], abs=5.1e-3)


def test_a_cell_without_a_record_is_empty():
    assert {
        cell for row in ROWS for cell in row.values() if not any(letter.isalnum() for letter in cell)
    } == {NONE}


def test_the_readme_says_how_much_cheaper_tome_is():
    assert f"up to {tome_below():.1f} points lower" in " ".join(README.read_text().split())
