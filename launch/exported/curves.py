"""Curves of an adapter's card, from what a sweep writes: that in the folder of its run, or that of `dtem
teach`."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from launch.saved.run import SavedRun
from pipeline.backbone.adapters.config import Curve, CurvePoint
from pipeline.errors import ConfigError
from pipeline.merging.schedule import plain_reduction

MAX_BYTES = 1 << 26
"""Largest sweep.json; the run may be a stranger's."""


def curves_of(run: SavedRun, tasks: Collection[str]) -> list[Curve]:
    """The curve of each of these tasks that RUN/sweep has of this checkpoint. Raises ConfigError where
    sweep.json is damaged."""
    path = run.root / "sweep" / "sweep.json"
    if not path.is_file():
        return []
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes")
        found = json.loads(path.read_text(encoding="utf-8"))
        return [curve for part in found if part["task"] in tasks and (curve := _curve(run, part))]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as err:
        raise ConfigError(
            f"{path} is not what `dtem sweep` writes ({err}); remove it, or sweep again"
        ) from err


def _curve(run: SavedRun, part: Mapping[str, Any]) -> Curve | None:
    """The curve of a task; None for the sweep of another checkpoint."""
    number = _number_of(run, part["conditions"])
    return None if number is None else curve_of(part, run.config.merging.policy, number)


def curve_of(part: Mapping[str, Any], policy: str, number: int = 0) -> Curve:
    """The curve of an adapter's card, from the sweep of a task as plain data (`plain_sweep`). policy: the
    adapter's. number: of its run among those of the sweep."""
    metric, where = next(iter(part["units"])), part["conditions"]
    points: dict[str, list[Mapping[str, Any]]] = {}
    for row in part["points"]:  # a target is a number or a list
        points.setdefault(f"{row['target']} {row.get('kind', '')}", []).append(row)
    found = (_point(rows, metric, policy, number) for rows in points.values())
    return Curve(
        task=part["task"],
        metric=metric,
        unit=part["units"][metric],
        split=where["split"],
        samples=where["samples"],
        points=[point for point in found if point is not None],
    )


def _number_of(run: SavedRun, where: Mapping[str, Any]) -> int | None:
    """Number of this checkpoint among the runs of a sweep; None where it is not there."""
    own = _without_folders(str(run)), run.facts["digest"]
    swept = [
        (_without_folders(text), digest) for text, digest in zip(where["runs"], where["digests"], strict=True)
    ]
    return swept.index(own) if own in swept else None


def _without_folders(text: str) -> str:
    """`step_N (step N, ... weights)`, wherever the folder lay."""
    return text.rpartition("/")[2]


def _point(rows: Sequence[Mapping[str, Any]], metric: str, policy: str, number: int) -> CurvePoint | None:
    """The point of the policies at one target; None where the adapter's own policy, or the unmerged model, is
    not among them."""
    own = next((row for row in rows if row["policy"] in (policy, "none")), None)
    if own is None:
        return None
    scores = {row["policy"]: _score(row["scores"][metric], number) for row in rows}
    return CurvePoint(
        reduction=plain_reduction([int(r) for r in own["schedule"]], len(own["schedule"])),
        macs=float(own["macs_ratio"]),
        scores={name: score for name, score in scores.items() if score is not None},
    )


def _score(values: Sequence[float | None], number: int) -> float | None:
    """The score of one run; all runs have one score where the policy does not learn."""
    value = values[number] if len(values) > 1 else values[0]
    return None if value is None else float(value)
