"""The accuracy-compute plot of a sweep, in the colours of Okabe and Ito, which colour-blind readers can tell
apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.extras import extra
from pipeline.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
WIDTH, NARROW, HEIGHT = 7.2, 5.6, 4.5
"""Width of a single plot, width of one of several, and height, in inches."""
NAMES = 1.6
"""Room for the names left of the curves, in inches."""
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
    """Curve of one policy at K points. macs [K]: multiply-accumulates. scores [K][runs]: in the metric's
    unit."""

    label: str
    macs: Sequence[float]
    scores: Sequence[Sequence[float]]

    @property
    def means(self) -> list[float]:
        return [sum(values) / len(values) for values in self.scores]


@dataclass(frozen=True)
class Plot:
    """One pair of axes. whole: the unmerged model. metric: name of the metric, with its unit if any."""

    curves: Sequence[Curve]
    whole: Curve
    metric: str
    title: str


def draw_plots(plots: Sequence[Plot], stem: Path) -> list[Path]:
    """Writes STEM.png and STEM.svg with the plots side by side: a line per policy, a band from its worst to
    its best run, and a star for the unmerged model. Raises ConfigError without matplotlib."""
    with extra("plots"):
        import matplotlib
        from matplotlib.figure import Figure
    with matplotlib.rc_context(STYLE):
        width = WIDTH if len(plots) == 1 else NARROW
        figure = Figure(figsize=(width * len(plots), HEIGHT), layout="constrained")
        styles = _styles([curve.label for plot in plots for curve in plot.curves])
        for axes, plot in zip(figure.subplots(1, len(plots), squeeze=False)[0], plots, strict=True):
            _draw_plot(figure, axes, plot, styles, NAMES / width)
        paths = [stem.with_suffix(suffix) for suffix in (".png", ".svg")]
        for path in paths:
            with replacing(path) as part:
                figure.savefig(part, dpi=160, metadata={"Date": None} if path.suffix == ".svg" else None)
    return paths


def _styles(labels: Sequence[str]) -> dict[str, tuple[str, bool]]:
    """Label -> colour, and whether its line is dashed. An untrained control is dashed, in the colour of its
    policy."""
    bases = sorted({label.removesuffix("_untrained") for label in labels})
    colours = {base: COLOURS[i % len(COLOURS)] for i, base in enumerate(bases)}
    return {
        label: (colours[label.removesuffix("_untrained")], label.endswith("_untrained")) for label in labels
    }


def _draw_plot(
    figure: "Figure", axes: Any, plot: Plot, styles: Mapping[str, tuple[str, bool]], room: float
) -> None:
    """Draws one plot. room: share of the width that is for names."""
    whole = plot.whole
    ends = [_draw(axes, curve, *styles[curve.label]) for curve in plot.curves]
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
    _dress(axes, plot.metric, plot.title, whole)
    _label_ends(figure, axes, ends, room)


def _draw(axes: Any, curve: Curve, colour: str, dashed: bool) -> tuple[float, float, str, str]:
    """Draws a curve. Returns (x, y, label, colour) of the end with the fewest MACs, the place of its name."""
    order = sorted(range(len(curve.macs)), key=lambda k: curve.macs[k])
    x = [curve.macs[k] for k in order]
    y = [curve.means[k] for k in order]
    axes.plot(
        x,
        y,
        "o--" if dashed else "o-",
        color=colour,
        linewidth=1.8,
        markersize=4.5,
        markerfacecolor="white" if dashed else colour,
    )
    low, high = [min(curve.scores[k]) for k in order], [max(curve.scores[k]) for k in order]
    if low != high:
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    return x[0], y[0], curve.label, colour


def _dress(axes: Any, metric: str, title: str, whole: Curve) -> None:
    axes.set_title(title, loc="left", color=INK, fontsize=11)
    unit = _unit(whole.macs[0])
    axes.xaxis.set_major_formatter(lambda x, _: f"{x / unit[0]:g}")
    axes.set_xlabel(f"{unit[1]}MACs per image (what papers call {unit[1]}FLOPs)")
    axes.set_ylabel(metric)
    axes.grid(True, linewidth=0.8)
    axes.set_axisbelow(True)
    top = axes.secondary_xaxis(
        "top", functions=(lambda x: 100 * x / whole.macs[0], lambda x: x * whole.macs[0] / 100)
    )
    top.xaxis.set_major_formatter(lambda x, _: f"{x:.0f} %")
    top.spines["top"].set_visible(False)
    top.tick_params(length=0, labelcolor=FAINT, labelsize=8)


def _unit(macs: float) -> tuple[float, str]:
    return (1e9, "G") if macs >= 1e8 else (1e6, "M")


def _label_ends(
    figure: "Figure", axes: Any, ends: Sequence[tuple[float, float, str, str]], room: float
) -> None:
    """Writes the names of the curves at their ends, in one column left of all curves, moved apart where they
    would overlap."""
    left = min((x for x, *_ in ends), default=0.0)
    low, high = axes.get_xlim()
    axes.set_xlim(low - room * (high - low), high)
    figure.draw_without_rendering()
    bottom, top = axes.get_ylim()
    least = 0.05 * (top - bottom)
    placed = float("-inf")
    for _, y, label, colour in sorted(ends, key=lambda end: end[1]):
        placed = max(y, placed + least)
        offset = (-9, (placed - y) * _points_per_unit(axes))
        axes.annotate(
            label, (left, y), offset, textcoords="offset points", ha="right", va="center", color=colour
        )


def _points_per_unit(axes: Any) -> float:
    """Length of one unit of y on paper, in points."""
    (_, zero), (_, one) = axes.transData.transform([(0, 0), (0, 1)])
    return (one - zero) * 72 / axes.figure.dpi
