"""The accuracy-compute plot of a sweep, in the colours of Okabe and Ito, which colour-blind readers can tell
apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.report.words import PART, policy_words
from launch.saved.policy_names import UNTRAINED
from pipeline.extras import extra
from pipeline.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = "osD^vP"
LINES = ("-", ":", "-.")
DASHED = "--"
THICK, THIN = 3.6, 1.6
"""Widths of the first line and of the last in points, so that a line below an equal one is seen."""
STEP = 0.06
"""Least distance of two names, as a share of the height."""
LEAST_POINTS, LEAST_SHARE, ERRORS = 5.0, 0.2, 4.0
"""The least that the height of a plot stands for, so that no noise fills it: points of a score in per cent,
else a share of the unmerged score; and standard errors of a share of so many samples."""
WIDTH, NARROW, HEIGHT = 7.2, 5.6, 4.5
"""Width of a single plot, width of one of several, and height, in inches."""
NAMES = 1.75
"""Room for the names left of the curves, in inches."""
EACH_NAME = 0.27
"""Height of one of the names, in inches."""
INK, FAINT = "#222222", "#8a8a8a"
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": "#e6e6e6",
    "svg.fonttype": "none",
    "svg.hashsalt": "dtem",
}


@dataclass(frozen=True)
class Curve:
    """Curve of one policy at K points. label: see `curve_label`. macs [K]: multiply-accumulates. scores
    [K][runs]: in the metric's unit."""

    label: str
    macs: Sequence[float]
    scores: Sequence[Sequence[float]]

    @property
    def means(self) -> list[float]:
        return [sum(values) / len(values) for values in self.scores]


@dataclass(frozen=True)
class Plot:
    """One pair of axes. whole: the unmerged model. metric: name of the metric. facts: what a reader has to
    know of the figures, a line below the title. samples: number of those that were scored."""

    curves: Sequence[Curve]
    whole: Curve
    metric: str
    title: str
    unit: str = ""
    facts: str = ""
    samples: int = 0


def least_height(score: float, unit: str, samples: int) -> float:
    """The least that the height of axes stands for, in the metric's unit. score: the unmerged model's.
    samples: number of those that were scored."""
    if unit != "%":
        return LEAST_SHARE * abs(score)
    share = min(abs(score) / 100, 1.0)
    error = 100 * (share * (1 - share) / max(1, samples)) ** 0.5
    return max(LEAST_POINTS, ERRORS * error)


def draw_plots(plots: Sequence[Plot], stem: Path) -> list[Path]:
    """Writes STEM.png and STEM.svg with the plots side by side: a line per policy, a band from its worst to
    its best run, and a star for the unmerged model. Raises ConfigError without matplotlib."""
    with extra("plots"):
        import matplotlib
        from matplotlib.figure import Figure

        from launch.report.fonts import letters_for
    letters = letters_for(text for plot in plots for text in (plot.title, plot.facts))
    plots = [replace(plot, title=letters(plot.title), facts=letters(plot.facts)) for plot in plots]
    style: dict[Any, Any] = STYLE | {"font.family": letters.families}
    with matplotlib.rc_context(style):
        width = WIDTH if len(plots) == 1 else NARROW
        height = max(HEIGHT, EACH_NAME * max(len(plot.curves) for plot in plots) + 1.5)
        figure = Figure(figsize=(width * len(plots), height), layout="constrained")
        styles = _styles([curve.label for plot in plots for curve in plot.curves])
        for axes, plot in zip(figure.subplots(1, len(plots), squeeze=False)[0], plots, strict=True):
            _draw_plot(figure, axes, plot, styles, NAMES / width)
        paths = [stem.with_suffix(suffix) for suffix in (".png", ".svg")]
        for path in paths:
            with replacing(path) as part:
                figure.savefig(part, dpi=160, metadata={"Date": None} if path.suffix == ".svg" else None)
    return paths


@dataclass(frozen=True)
class _Style:
    """How a curve is drawn, in the colour of its policy. An untrained control is dashed; of a second and
    third kind of schedules the line is dotted and dash-dotted. hollow: whether markers are."""

    colour: str
    marker: str
    line: str
    hollow: bool
    width: float


def _styles(labels: Sequence[str]) -> dict[str, _Style]:
    """Label -> its style, the same in all plots of a figure."""
    names = list(dict.fromkeys(labels))
    parted = {label: label.partition(PART)[::2] for label in names}
    bases = sorted({policy.removesuffix(UNTRAINED) for policy, _ in parted.values()})
    kinds = list(dict.fromkeys(kind for _, kind in parted.values()))
    steps = max(1, len(names) - 1)
    styles: dict[str, _Style] = {}
    for i, label in enumerate(names):
        policy, kind = parted[label]
        number, other = bases.index(policy.removesuffix(UNTRAINED)), kinds.index(kind)
        width = THICK + (THIN - THICK) * i / steps
        turn = number // len(COLOURS)  # a colour that comes again has another marker
        untrained = policy.endswith(UNTRAINED)
        line = LINES[other % len(LINES)] if other or not untrained else DASHED
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[(number + turn + other) % len(MARKERS)]
        styles[label] = _Style(colour, marker, line, untrained, width)
    return styles


def _draw_plot(figure: "Figure", axes: Any, plot: Plot, styles: Mapping[str, _Style], room: float) -> None:
    """Draws one plot. room: share of the width that is for names."""
    whole = plot.whole
    ends = [_draw(axes, curve, styles[curve.label]) for curve in plot.curves]
    axes.plot(whole.macs, whole.means, "*", color=INK, markersize=14, zorder=5)
    axes.annotate(
        "unmerged",
        (whole.macs[0], whole.means[0]),
        (-11, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        color=INK,
    )
    _dress(axes, plot)
    _label_ends(figure, axes, ends, room)


def _draw(axes: Any, curve: Curve, style: _Style) -> tuple[float, float, str, str]:
    """Draws a curve. Returns (x, y, label, colour) of the end with the fewest MACs, the place of its name."""
    order = sorted(range(len(curve.macs)), key=lambda k: curve.macs[k])
    x = [curve.macs[k] for k in order]
    y = [curve.means[k] for k in order]
    axes.plot(
        x,
        y,
        linestyle=style.line,
        marker=style.marker,
        color=style.colour,
        linewidth=style.width,
        markersize=4 + style.width,
        markerfacecolor="white" if style.hollow else style.colour,
    )
    low, high = [min(curve.scores[k]) for k in order], [max(curve.scores[k]) for k in order]
    if low != high:
        axes.fill_between(x, low, high, color=style.colour, alpha=0.15, linewidth=0)
    return x[0], y[0], policy_words(curve.label), style.colour


def _dress(axes: Any, plot: Plot) -> None:
    whole = plot.whole
    axes.set_title(plot.title, loc="left", color=INK, fontsize=11, pad=38)
    axes.annotate(
        plot.facts,
        (0, 1),
        (0, 22),
        xycoords="axes fraction",
        textcoords="offset points",
        color=FAINT,
        fontsize=8.5,
    )
    least = min([x for curve in plot.curves for x in curve.macs] + list(whole.macs))
    _widen(axes, least_height(whole.means[0], plot.unit, plot.samples), plot.unit)
    unit = _unit(whole.macs[0])
    axes.xaxis.set_major_formatter(lambda x, _: f"{x / unit[0]:g}")
    axes.set_xlabel(f"{unit[1]}MACs per image (what papers call {unit[1]}FLOPs)")
    axes.set_ylabel(f"{plot.metric} ({plot.unit})" if plot.unit else plot.metric)
    axes.grid(True, linewidth=0.8)
    axes.set_axisbelow(True)
    top = axes.secondary_xaxis(
        "top", functions=(lambda x: 100 * x / whole.macs[0], lambda x: x * whole.macs[0] / 100)
    )
    first = 97 * least / whole.macs[0]
    top.xaxis.set_major_formatter(lambda x, _: f"{x:.0f} %" if x >= first else "")
    top.spines["top"].set_visible(False)
    top.tick_params(length=0, labelcolor=FAINT, labelsize=8)


def _widen(axes: Any, least: float, unit: str) -> None:
    """Makes the height stand for `least` at least, around what is drawn, and within what a share can be."""
    low, high = axes.get_ylim()
    if high - low < least:
        middle = (low + high) / 2
        low, high = middle - least / 2, middle + least / 2
        if unit == "%":
            moved = max(0.0, -low) - max(0.0, high - 100 - least * STEP)
            low, high = low + moved, high + moved
        axes.set_ylim(low, high)


def _unit(macs: float) -> tuple[float, str]:
    return (1e9, "G") if macs >= 1e8 else (1e6, "M")


def _label_ends(
    figure: "Figure", axes: Any, ends: Sequence[tuple[float, float, str, str]], room: float
) -> None:
    """Writes the names of the curves at their ends, in one column left of all curves, moved apart where they
    would overlap, and within the axes."""
    left = min((x for x, *_ in ends), default=0.0)
    low, high = axes.get_xlim()
    axes.set_xlim(low - room * (high - low), high)
    figure.draw_without_rendering()
    bottom, top = axes.get_ylim()
    # no ticks where the names stand
    axes.set_xticks([x for x in axes.get_xticks() if 0.97 * left <= x <= high])
    ends = sorted(ends, key=lambda end: end[1])
    least = min(STEP, 1 / max(1, len(ends))) * (top - bottom)
    places = apart([end[1] for end in ends], least, bottom, top)
    for (_, y, label, colour), placed in zip(ends, places, strict=True):
        offset = (-9, (placed - y) * _points_per_unit(axes))
        axes.annotate(
            label, (left, y), offset, textcoords="offset points", ha="right", va="center", color=colour
        )


def apart(values: Sequence[float], least: float, low: float, high: float) -> list[float]:
    """Places of labels for ascending values: at least `least` apart, half of that from both ends, and else
    where the values are. Where there is no room for that, from the lower end on."""
    places: list[float] = []
    for i, value in enumerate(values):
        highest = high - least * (len(values) - i - 0.5)
        lowest = places[-1] + least if places else low + least / 2
        places.append(max(lowest, min(value, highest)))
    return places


def _points_per_unit(axes: Any) -> float:
    """Length of one unit of y on paper, in points."""
    (_, zero), (_, one) = axes.transData.transform([(0, 0), (0, 1)])
    return (one - zero) * 72 / axes.figure.dpi
