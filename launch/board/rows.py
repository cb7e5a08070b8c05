"""The table of a board: a row for each policy at each point, those that could not be measured among them."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from launch.measure.points import LeftOut, Point, Sweep
from launch.report.sweep_files import has_decoder, target_text
from launch.report.tables import score, spread
from launch.report.words import policy_words
from launch.saved.policy_names import KINDS, UNMERGED, kind_of

NONE = "-"
"""A cell that nothing fills."""


@dataclass(frozen=True)
class Table:
    """columns: the first three are the policy, its kind and the point. rows: see `table_of`. reasons: of
    those that could not be measured, in the order of their numbers, from 1."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    reasons: Sequence[str]


def table_of(result: Sweep) -> Table:
    """The unmerged model, then for each point the controls, the training-free policies and the trained ones,
    within a kind the highest first. The last column has the number of a reason, where there are any."""
    several = _several(result)
    reasons = [_reason(own, several) for own in result.left_out]
    columns = ["policy", "kind", "point", *(["schedule"] if several else [])]
    columns += [*(f"{name} {unit}".rstrip() for name, unit in result.units.items())]
    columns += ["GMACs", "MACs %", *(["encoder %"] if has_decoder(result) else [])]
    columns += ["images/s", "lowest to highest", "speed-up", "peak MiB"]
    rows = [_row(result, point) for point in (result.whole, *_ordered(result))]
    width = len(columns)
    for number, own in enumerate(result.left_out, 1):
        point = "all" if own.target is None else target_text(own.target)
        cells = [policy_words(own.policy), kind_of(own.policy), point]
        cells += [own.kind or NONE] if several else []
        rows.append([*cells, *[NONE] * (width - len(cells)), f"left out: {number}"])
    if reasons:
        columns.append("note")
        rows = [[*row, *[""] * (len(columns) - len(row))] for row in rows]
    return Table(columns, rows, reasons)


def _reason(own: LeftOut, several: bool) -> str:
    where = "" if own.target is None else f" at {target_text(own.target)}"
    by = f", {own.kind}" if several and own.kind else ""
    return f"{policy_words(own.policy)}{where}{by}: {own.reason}"


def _several(result: Sweep) -> bool:
    """Whether schedules are of several kinds, so that a row has to say which."""
    left_out = {own.kind for own in result.left_out if own.kind}
    return len({point.kind for point in result.points} | left_out) > 1


def _ordered(result: Sweep) -> list[Point]:
    """By point, as they were asked for, by kind, and the highest main score first."""
    targets: dict[str, int] = {}
    for point in result.points:
        targets.setdefault(target_text(point.target), len(targets))

    def key(point: Point) -> tuple[int, int, float]:
        known = [value for value in point.scores[result.metric] if value is not None]
        mean = sum(known) / len(known) if known else 0.0
        return targets[target_text(point.target)], KINDS.index(kind_of(point.policy)), -mean

    return sorted(result.points, key=key)


def _row(result: Sweep, point: Point) -> list[str]:
    kind = kind_of(point.policy)
    return [
        policy_words(point.policy),
        kind,
        NONE if kind == UNMERGED else target_text(point.target),
        *([point.kind or NONE] if _several(result) else []),
        *(_score(point, name, unit) for name, unit in result.units.items()),
        f"{point.macs / 1e9:.4g}",
        f"{100 * point.macs / result.whole.macs:.1f}",
        *([_encoder(result, point)] if has_decoder(result) else []),
        *_speed(point, result.whole),
        NONE if point.peak_mib is None else f"{point.peak_mib:.1f}",
    ]


def _encoder(result: Sweep, point: Point) -> str:
    """The share of the encoder's unmerged MACs, which a point may be asked for."""
    return f"{100 * point.encoder_macs / result.whole.encoder_macs:.1f}"


def _score(point: Point, metric: str, unit: str) -> str:
    """In its unit; of what has none in three digits, as a divergence may be small."""
    values = point.scores[metric]
    return score(values, unit) if unit == "%" else spread(values, "{:.3g}")


def _speed(point: Point, whole: Point) -> list[str]:
    """Median, range, and the median of the ratios to the unmerged model within a round."""
    speeds = point.images_per_s
    if not speeds:
        return [NONE] * 3
    ratios = [own / other for own, other in zip(speeds, whole.images_per_s, strict=True)]
    return [f"{median(speeds):.4g}", f"{min(speeds):.4g} to {max(speeds):.4g}", f"{median(ratios):.2f}"]
