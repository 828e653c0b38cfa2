"""`reports/training.html`: a training on one page, curves drawn as SVG, readable offline.

Knows only the report's numbers.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_WIDTH, _HEIGHT, _EDGE = 560, 160, 46
_TITLES = {
    "loss": "loss",
    "accuracy": "accuracy on people not trained on",
    "cosine": "cosine to the target",
    "alpha": "alpha: how much of a centre stays",
    "lambda": "lambda: how near a centre is to its new image",
    "lr": "learning rate",
}
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:600px;margin:2em auto;color:#222}"
    "td{padding:0 1em 0 0;vertical-align:top}svg{display:block;margin:0 0 1em}"
    "text{font-size:11px;fill:#555}h2{font-size:15px;margin:1em 0 0}"
)
_FACTS = (
    "faces",
    "images",
    "identities",
    "device",
    "precision",
    "steps",
    "seconds",
    "images_per_s",
)
_RESULTS = ("accuracy", "untrained_accuracy", "teacher_accuracy")


def training_page(report: Mapping[str, Any]) -> str:
    """The page of what `training_report` returns."""
    recipe = report["recipe"]
    title = f"{recipe['network']}, {recipe['method']}"
    best = report["best"]
    facts = [(name, report[name]) for name in _FACTS]
    facts += [(name, f"{report[name]:.2%}") for name in _RESULTS if report[name] is not None]
    if best:
        facts.append(("best on the way", f"{best['accuracy']:.2%} at step {best['step']:.0f}"))
    points = {**_columns(report["curve"]), **_columns(report["verification"])}
    drawn = [
        f"<h2>{escape(text)}</h2>{_plot(points[name])}"
        for name, text in _TITLES.items()
        if len(points.get(name, ())) > 1
    ]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style><h1>{escape(title)}</h1>{_table(facts)}{''.join(drawn)}"
        f"<h2>recipe</h2>{_table(list(recipe.items()))}</html>\n"
    )


def _columns(rows: Sequence[Mapping[str, float]]) -> dict[str, list[tuple[float, float]]]:
    names = {name for row in rows for name in row if name != "step"}
    return {name: [(row["step"], row[name]) for row in rows if name in row] for name in names}


def _table(rows: Sequence[tuple[str, Any]]) -> str:
    cells = "".join(f"<tr><td>{escape(k)}<td>{escape(str(v))}" for k, v in rows)
    return f"<table>{cells}</table>"


def _plot(points: Sequence[tuple[float, float]]) -> str:
    """A line with its lowest and highest value and its steps written beside it."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = min(ys), max(ys)
    across = (_WIDTH - _EDGE) / max(xs[-1] - xs[0], 1e-12)
    up = (_HEIGHT - 30) / max(high - low, 1e-12)
    line = " ".join(
        f"{_EDGE + (x - xs[0]) * across:.1f},{_HEIGHT - 20 - (y - low) * up:.1f}" for x, y in points
    )
    labels = [(0, 14, f"{high:.3g}"), (0, _HEIGHT - 20, f"{low:.3g}")]
    labels += [
        (_EDGE, _HEIGHT - 4, f"step {xs[0]:.0f}"),
        (_WIDTH - 60, _HEIGHT - 4, f"{xs[-1]:.0f}"),
    ]
    texts = "".join(f'<text x="{x}" y="{y}">{text}</text>' for x, y, text in labels)
    return (
        f'<svg width="{_WIDTH}" height="{_HEIGHT}">{texts}'
        f'<polyline points="{line}" fill="none" stroke="#2465a8" stroke-width="1.5"/></svg>'
    )
