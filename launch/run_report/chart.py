"""Line charts as inline SVG: text stays text, and nothing is loaded. Colours of Okabe and Ito, darkened where
they would be faint on white; lines differ by their dashes too."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from launch.run_report.markup import text

COLOURS = ("#0072b2", "#b34a00", "#00795a", "#a8477f", "#5d4fb3", "#7a5c00")
DASHES = ("", "7 4", "2 3", "9 3 2 3")
WIDEST, WIDENING = 3.4, 0.5
"""Width of the first line, and by how much less each next one has: with its gaps, a line below an equal one
is seen."""
WIDTH, HEIGHT = 520, 260
LEFT, RIGHT, TOP, BOTTOM = 58, 26, 12, 40
MOST_POINTS = 400


@dataclass(frozen=True)
class Line:
    """points: (x, mean, lowest, highest), in the order of x."""

    label: str
    points: Sequence[tuple[float, float, float, float]]


def draw(
    lines: Sequence[Line],
    title: str,
    across: str,
    number: int,
    *,
    least: float = 0.0,
    within: tuple[float, float] = (-math.inf, math.inf),
    told: str = "",
) -> str:
    """An `svg` with title and description for readers of screens, and its legend. number: its own on the
    page. least: what the height stands for at least, so that no noise fills it. within: what values can be.
    told: a word below the title."""
    every = [point for line in lines for point in line.points]
    x_ticks = _ticks(min(p[0] for p in every), max(p[0] for p in every))
    low, high = min(p[2] for p in every), max(p[3] for p in every)
    room = max(0.0, least - (high - low)) / 2
    y_ticks = _ticks(max(within[0], low - room), min(within[1], high + room))
    frame = _Frame(x_ticks, y_ticks)
    last = "; ".join(f"{line.label}: {line.points[-1][1]:.4g} at {line.points[-1][0]:g}" for line in lines)
    marks = "".join(_line(frame, line, i) for i, line in enumerate(lines))
    legend = "".join(
        f'<li><svg width="26" height="8" aria-hidden="true"><path d="M0 4H26" {_stroke(i)}/></svg> '
        f"{text(line.label)}</li>"
        for i, line in enumerate(lines)
    )
    return (
        f"<figure><h3>{text(title)}</h3>{f'<p>{text(told)}</p>' if told else ''}"
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-labelledby="t{number} d{number}"><title id="t{number}">{text(title)}</title>'
        f'<desc id="d{number}">{text(f"against {across}; last values: {last}")}</desc>'
        f"{frame.axes(across)}{marks}</svg>"
        + (f'<ul class="legend">{legend}</ul>' if len(lines) > 1 else "")
        + "</figure>"
    )


@dataclass(frozen=True)
class _Frame:
    x_ticks: Sequence[float]
    y_ticks: Sequence[float]

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * _share(value, self.x_ticks)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * _share(value, self.y_ticks)

    def axes(self, across: str) -> str:
        rows = "".join(
            f'<path class="grid" d="M{LEFT} {self.y(v):.1f}H{WIDTH - RIGHT}"/>'
            f'<text x="{LEFT - 7}" y="{self.y(v) + 4:.1f}" text-anchor="end">{_number(v)}</text>'
            for v in self.y_ticks
        )
        columns = "".join(
            f'<text x="{self.x(v):.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{_number(v)}</text>'
            for v in self.x_ticks
        )
        name = f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 5}" text-anchor="middle">{text(across)}'
        return f"{rows}{columns}{name}</text>"


def _line(frame: _Frame, line: Line, i: int) -> str:
    thin = line.points[:: max(1, math.ceil(len(line.points) / MOST_POINTS))]
    points = [*thin, line.points[-1]] if thin[-1] != line.points[-1] else list(thin)
    path = " ".join(f"{frame.x(p[0]):.1f},{frame.y(p[1]):.1f}" for p in points)
    band = ""
    if any(p[2] != p[3] for p in points):
        edge = [(p[0], p[2]) for p in points] + [(p[0], p[3]) for p in reversed(points)]
        outline = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in edge)
        band = f'<polygon points="{outline}" fill="{COLOURS[i % len(COLOURS)]}" opacity="0.15"/>'
    dots = "".join(
        f'<circle cx="{frame.x(p[0]):.1f}" cy="{frame.y(p[1]):.1f}" r="{max(2.2, 4.2 - 0.7 * i):.1f}" '
        f'fill="{COLOURS[i % len(COLOURS)]}"/>'
        for p in (points if len(points) <= 30 else points[-1:])
    )
    return f'{band}<polyline points="{path}" {_stroke(i)}/>{dots}'


def _stroke(i: int) -> str:
    colour, dashes = COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)]
    width = max(2.0, WIDEST - WIDENING * i)
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'fill="none" stroke="{colour}" stroke-width="{width:g}"{dashed}'


def _ticks(low: float, high: float) -> list[float]:
    """Four to seven round numbers around low and high."""
    if high <= low:
        low, high = low - (abs(low) or 1.0) * 0.05, high + (abs(high) or 1.0) * 0.05
    size = 10 ** math.floor(math.log10((high - low) / 4))
    step = next(size * times for times in (1, 2, 5, 10) if (high - low) / (size * times) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * i for i in range(first, last + 1)]


def _share(value: float, ticks: Sequence[float]) -> float:
    return (value - ticks[0]) / (ticks[-1] - ticks[0])


def _number(value: float) -> str:
    return f"{value:.5g}" if abs(value) > 1e-12 else "0"
