"""Scores of a saved run, counted anew by one process."""

import json
from pathlib import Path

from launch.cli import main


def scored_again(run: Path) -> dict[str, float | None]:
    """What `dtem evaluate` says of the run's last checkpoint, under the names that training logs:
    `val/TASK/METRIC`.

    Merges, classes and words are choices, so scores of two runs whose weights are equal but for rounding are
    not compared. Those of one checkpoint are: each batch is the same whoever evaluates it, and so are the
    choices.
    """
    answer = run / "scored_again.json"
    assert main(["evaluate", str(run), "--out", str(answer), "--allow-missing"]) == 0
    scores = json.loads(answer.read_text())["scores"]
    lines = (run / "metrics.jsonl").read_text().splitlines()
    logged = {name for line in lines for name in json.loads(line) if name.startswith("val/")}
    found = {f"val/{task}/{name}": value for task, own in scores.items() for name, value in own.items()}
    assert logged & found.keys(), "nothing would be compared"
    # classes are scored one by one only where scores are written
    return {name: value for name, value in found.items() if name in logged}
