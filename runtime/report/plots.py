"""The report's plots, as SVG text to put into a page.

Lines and letters have the page's own colour, so one drawing serves light, dark and paper.
"""

import html
import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from ...metrics.comparison import CurvesChange
from ...metrics.rates import ScoreCurves
from ...metrics.strata import Stratum
from ...reading import printable
from .tradeoff import Tradeoff

_INK = "#010203"  # stands for the page's text colour until the SVG is in it

_FIRST, _SECOND = "#2a78b8", "#d9661f"  # blue and orange: told apart by most colour-blind eyes

INT8_IN_FLOAT = "int8 in float"  # INT8 weights, computed in float on this CPU
NOT_IN_ENGINE = (
    "not in the engine"  # an INT8 layer of the model that the engine's file does not have
)
_PRECISIONS = {
    "int8": _FIRST,
    "fp8": "#b8a12a",
    "fp16": "#4aa8a0",
    INT8_IN_FLOAT: "#9a7fc0",
    "fp32": _SECOND,
}
_NAMES = {"int8": "INT8 in integer kernels", INT8_IN_FLOAT: "INT8 weights, float sums"}

_LOG_RATIO = 10.0  # largest over smallest latency, from which a linear axis hides the small ones
MAX_LINES = 6  # in one plot, as many as can be told apart
_SIZE = (4.6, 3.2)  # inches: small, so that letters stay readable on a phone


def cosine_histogram(edges: Sequence[float], counts: Sequence[int], p1: float, title: str) -> str:
    """Faces by cosine between reference and engine, with a line at the first percentile.

    Args:
        edges: Of the bins, one more than `counts`.
        counts: Faces in each bin.
        p1: The first percentile.
        title: Begins the plot's name.
    """

    def draw(axes: Any) -> None:
        widths = [b - a for a, b in zip(edges, edges[1:], strict=False)]
        axes.bar(edges[:-1], counts, widths, align="edge", color=_FIRST)
        axes.axvline(p1, color=_SECOND, linewidth=1.5, label=f"1 % are below {p1:.4f}")
        axes.set_yscale("symlog", linthresh=1)
        axes.locator_params(axis="x", nbins=4)
        axes.set_xlabel("cosine of reference and engine")
        axes.set_ylabel("faces")

    return _svg(f"{title} cosines", draw)


def roc_curves(curves: CurvesChange, title: str) -> str:
    """True accept rate over false accept rate of reference and engine.

    Args:
        curves: Of both.
        title: Begins the plot's name.
    """

    def draw(axes: Any) -> None:
        for name, scores, style in sides:
            axes.plot(scores.roc["far"], scores.roc["tar"], label=name, **style)
        axes.set_xscale("log")
        axes.set_xlabel("false accept rate")
        axes.set_ylabel("true accept rate")
        lowest = min(min(scores.roc["tar"], default=0.0) for _, scores, _ in sides)
        axes.set_ylim(min(lowest, 0.9) - 0.01, 1.01)  # of networks without an error too

    sides = list(_sides(curves, title))
    return _svg(f"{title} ROC", draw)


def det_curves(curves: CurvesChange, title: str) -> str:
    """False rejects over false accepts, both in decades, which separates curves where a ROC is flat.

    Args:
        curves: Of reference and engine.
        title: Begins the plot's name.

    Returns:
        The plot; empty where neither rejects a genuine pair.
    """
    lines = []
    for name, scores, style in _sides(curves, title):
        roc = zip(scores.roc["far"], scores.roc["tar"], strict=True)
        if points := [(far, 1 - tar) for far, tar in roc if tar < 1]:
            lines.append((name, points, style))
    if not lines:
        return ""

    def draw(axes: Any) -> None:
        for name, points, style in lines:
            axes.plot(*zip(*points, strict=True), label=name, **style)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("false accept rate")
        axes.set_ylabel("false reject rate")

    return _svg(f"{title} DET", draw)


def drift_by_kind(strata: Sequence[Stratum], title: str) -> str:
    """How far each kind of face moved, 1 - cosine: the mean and the worst 5 %.

    Args:
        strata: The kinds.
        title: Begins the plot's name.
    """
    rows = sorted(strata, key=lambda stratum: -stratum.cosine.mean)

    def draw(axes: Any) -> None:
        names = [printable(stratum.name) for stratum in rows]
        mean = [max(0.0, 1 - stratum.cosine.mean) for stratum in rows]
        tail = [max(0.0, 1 - stratum.cosine.p5) for stratum in rows]
        axes.hlines(names, mean, tail, color=_SECOND, linewidth=1.5)
        axes.plot(mean, names, "o", color=_FIRST, markersize=5, label="mean")
        axes.plot(tail, names, "|", color=_SECOND, markersize=9, label="worst 5 % begin")
        axes.set_xlim(left=0)
        axes.locator_params(axis="x", nbins=4)
        axes.xaxis.set_major_formatter("{x:g}")  # no factor, which would lie over the label
        axes.set_xlabel("1 - cosine of reference and engine")

    return _svg(f"{title} kinds of faces", draw, height=1.3 + 0.21 * len(rows))


def layer_precision_chart(layers: Sequence[tuple[str, int, str]], title: str) -> str:
    """Layers in order as bars of their multiply-adds, coloured by precision.

    Args:
        layers: `(name, multiply-adds, precision)` of each; a precision is a name of TensorRT's,
            `INT8_IN_FLOAT` or `NOT_IN_ENGINE`.
        title: Begins the plot's name.
    """
    total = max(1, sum(macs for _, macs, _ in layers))

    def draw(axes: Any) -> None:
        for precision in dict.fromkeys((*_PRECISIONS, *(row[2] for row in layers))):
            own = [
                (at, macs / 1e6) for at, (_, macs, of) in enumerate(layers, 1) if of == precision
            ]
            if own:
                share = 1e6 * sum(macs for _, macs in own) / total
                name = _NAMES.get(precision, precision.upper())
                noun = "layer" if len(own) == 1 else "layers"
                label = f"{name}: {len(own)} {noun}, {share:.1%}"
                colour = _PRECISIONS.get(precision, "#888888")
                axes.bar(*zip(*own, strict=True), width=0.9, color=colour, label=label)
        axes.set_xlabel("layer, from face to embedding")
        axes.set_ylabel("million multiply-adds")

    return _svg(f"{title} layers", draw)


def score_histogram(curves: CurvesChange, title: str) -> str:
    """Genuine and impostor scores of reference and engine over cosine -1..1.

    Args:
        curves: Of both.
        title: Begins the plot's name.
    """

    def draw(axes: Any) -> None:
        for side, scores, style in (
            ("reference", curves.reference, "-"),
            (f"{title} engine", curves.engine, "--"),
        ):
            for kind, share, colour in (
                ("impostor", scores.impostor, _SECOND),
                ("genuine", scores.genuine, _FIRST),
            ):
                step = 2 / len(share)
                middles = [-1 + step * (i + 0.5) for i in range(len(share))]
                label = f"{kind}, {side}"
                axes.plot(middles, share, style, color=colour, linewidth=1.2, label=label)
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel("cosine of two faces")
        axes.set_ylabel("share of pairs")

    return _svg(f"{title} scores", draw)


@dataclass(frozen=True)
class LatencyLine:
    """One setting of a benchmark in a plot.

    Attributes:
        label: The setting.
        valid: Whether its run was VALID.
        quantiles: `(percentile, ms)`, ascending.
        medians_ms: Of parts of the run in order.
    """

    label: str
    valid: bool
    quantiles: Sequence[tuple[float, float]]
    medians_ms: Sequence[float]


def latency_curves(lines: Sequence[LatencyLine], title: str) -> str:
    """Latency over percentiles, each further nine as wide as the last, so that tails show.

    Args:
        lines: The settings.
        title: Begins the plot's name.
    """
    from matplotlib.ticker import LogLocator

    def draw(axes: Any) -> None:
        for line, style in _styled(lines):
            percentiles, ms = zip(*line.quantiles, strict=True)
            axes.plot([_nines(q) for q in percentiles], ms, **style)
        marks = (0.0, 50.0, 90.0, 99.0, 99.9, 99.99)
        axes.set_xticks([_nines(q) for q in marks], [f"{q:g}" for q in marks])
        axes.set_xlim(left=0)
        levels = [ms for line in lines for _, ms in line.quantiles]
        if max(levels) > _LOG_RATIO * min(levels):
            axes.set_yscale("log", subs=())
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
        else:
            axes.set_ylim(bottom=0)
        axes.set_xlabel("percentile of runs")
        axes.set_ylabel("latency, ms")

    return _svg(f"{title} latency", draw)


def tradeoff_plot(tradeoff: Tradeoff) -> str:
    """True accept rate over latency, the area of a point showing the engine's size.

    Points that no other engine surpasses are joined by a line; engines whose benchmark is INVALID
    are hollow.

    Args:
        tradeoff: At least one engine with both figures.
    """

    def draw(axes: Any) -> None:
        largest = max(engine.size_mb for engine in tradeoff.plotted)
        front = [e for e in tradeoff.plotted if e.complete and not tradeoff.better_than(e)]
        axes.plot(
            [e.p50_ms for e in front],
            [100 * (e.tar or 0) for e in front],
            ":",
            color=_INK,
            zorder=1,
        )
        for engine in tradeoff.plotted:
            colour = _PRECISIONS.get(engine.precision, _FIRST)
            label = f"{engine.title}, {engine.size_mb:.2f} MB" + (
                "" if engine.valid else ": INVALID"
            )
            axes.scatter(
                engine.p50_ms, 100 * (engine.tar or 0), s=40 + 160 * engine.size_mb / largest,
                facecolors=colour if engine.valid else "none", edgecolors=colour, label=label, zorder=2,
            )  # fmt: skip
        axes.margins(0.25)
        axes.set_xlim(left=0)
        axes.yaxis.set_major_formatter(lambda tar, _: f"{tar:g}" if tar <= 100 else "")
        axes.set_xlabel("latency p50, ms")
        axes.set_ylabel(f"TAR at FAR {tradeoff.far}, %")

    return _svg("engines by size, speed and true accept rate", draw)


def speed_over_time(lines: Sequence[LatencyLine], title: str) -> str:
    """The median of each tenth of a run over that of the first; throttling and drift go up.

    Args:
        lines: The settings.
        title: Begins the plot's name.
    """

    def draw(axes: Any) -> None:
        for line, style in _styled(lines):
            tenths = range(1, len(line.medians_ms) + 1)
            axes.plot(tenths, [ms / line.medians_ms[0] for ms in line.medians_ms], **style)
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, 0.9), max(high, 1.1))  # one percent should not look like a cliff
        axes.set_xlabel("tenth of the run")
        axes.set_ylabel("median, the first being 1")

    return _svg(f"{title} speed", draw)


def _styled(lines: Sequence[LatencyLine]) -> Iterator[tuple[LatencyLine, dict[str, Any]]]:
    """INVALID settings are dotted, and labelled."""
    colours = cycle((_FIRST, _SECOND, "#4aa8a0"))
    for at, (line, colour) in enumerate(zip(lines[:MAX_LINES], colours, strict=False)):
        style: dict[str, Any] = {"color": colour, "linestyle": "-" if at < 3 else "--"}
        if not line.valid:
            style |= {"linestyle": (0, (2, 2)), "linewidth": 1.8}
        yield line, {**style, "label": line.label + ("" if line.valid else ": INVALID")}


def _nines(percentile: float) -> float:
    """50 -> 0.3, 90 -> 1, 99 -> 2, 99.9 -> 3."""
    return -math.log10(1 - percentile / 100)


def training_curve(
    loss: Sequence[tuple[float, float]], accuracy: Sequence[tuple[float, float]]
) -> str:
    """Loss over steps, and verification accuracy where it was measured.

    Args:
        loss: `(step, loss)`.
        accuracy: `(step, accuracy)`, fractions; may be empty.
    """

    def draw(axes: Any) -> None:
        axes.plot(*zip(*loss, strict=True), color=_FIRST, label="loss")
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        if accuracy:
            other = axes.twinx()
            points = zip(*accuracy, strict=True)
            other.plot(*points, "o--", color=_SECOND, markersize=3, label="accuracy")
            other.set_ylabel("verification accuracy")
            other.tick_params(colors=_INK)

    return _svg("training", draw)


def _sides(curves: CurvesChange, title: str) -> Iterator[tuple[str, ScoreCurves, dict[str, Any]]]:
    """The two curves of a plot: name, points, style."""
    yield "reference", curves.reference, {"color": _FIRST, "linestyle": "-"}
    yield f"{title} engine", curves.engine, {"color": _SECOND, "linestyle": "--"}


def _svg(name: str, draw: Callable[[Any], None], height: float = _SIZE[1]) -> str:
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogFormatter, NullFormatter

    colours = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    # The salt makes element ids equal from run to run.
    settings = {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 10, "axes.grid": True}
    settings |= {"text.parse_math": False}  # a name with $ in it is text
    settings |= dict.fromkeys(colours, _INK)
    settings |= dict.fromkeys(("figure.facecolor", "axes.facecolor"), "none")
    with rc_context({**settings, "grid.alpha": 0.25}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the browser's font draws the text
        figure = Figure(figsize=(_SIZE[0], height), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        for axis in (part for side in figure.axes for part in (side.xaxis, side.yaxis)):
            if isinstance(axis.get_major_formatter(), LogFormatter):  # would write TeX, unparsed
                axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axis.set_minor_formatter(NullFormatter())
        if axes.get_legend() is None and axes.get_legend_handles_labels()[0]:
            # Above the plot, where it hides nothing.
            figure.legend(loc="outside upper left", frameon=False, fontsize=9, ncols=1)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    # Ids must differ between the plots of one page.
    prefix = re.sub(r"[^A-Za-z0-9]+", "-", name)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{prefix}-", text)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    label = f' role="img" aria-label="{html.escape(name)}"'
    return re.sub(r'(<svg[^>]*?) width="[^"]*"', lambda match: match[1] + label, text, count=1)
