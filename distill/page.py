"""`reports/training.html`: a training on one page, curves drawn as SVG, readable offline.

Knows only the report's numbers.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_WIDTH, _HEIGHT, _EDGE = 440, 150, 48

_TITLES = {
    "loss": "loss",
    "accuracy": "accuracy on people not trained on",
    "cosine": "cosine to the target",
    "alpha": "alpha: how much of a centre stays",
    "lambda": "lambda: how near a centre is to its new image",
    "lr": "learning rate",
}

_STYLE = (
    ":root{color-scheme:light dark;--ink:#1c2126;--soft:#5d6873;--paper:#fff;--rule:#d8dde2}"
    "@media(prefers-color-scheme:dark){"
    ":root{--ink:#e4e8ec;--soft:#9aa5b0;--paper:#14181c;--rule:#343c44}}"
    "body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);"
    "max-width:62rem;margin:0 auto;padding:1rem}"
    "h1{font-size:1.5rem;overflow-wrap:anywhere}h2{font-size:1rem;margin:1.2rem 0 .3rem}"
    "td{padding:.1rem 1rem .1rem 0;vertical-align:top;overflow-wrap:anywhere}"
    "td:first-child{white-space:nowrap;color:var(--soft)}"
    ".plots{display:grid;gap:0 2rem;"
    "grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr))}"
    "svg{display:block;width:100%;height:auto}text{font-size:12px;fill:var(--soft)}"
    "line{stroke:var(--rule)}polyline{fill:none;stroke:#3a7cc2;stroke-width:1.5}"
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
    facts = [(_plain(name), _number(report[name])) for name in _FACTS]
    facts += [
        (_plain(name), f"{report[name]:.2%}") for name in _RESULTS if report[name] is not None
    ]
    if best:
        facts.append(("best on the way", f"{best['accuracy']:.2%} at step {best['step']:,.0f}"))
    points = {**_columns(report["curve"]), **_columns(report["verification"])}
    drawn = [
        f"<section><h2>{escape(text)}</h2>{_plot(text, points[name])}</section>"
        for name, text in _TITLES.items()
        if len(points.get(name, ())) > 1
    ]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style><h1>{escape(title)}</h1>"
        f'{_table(facts)}<div class="plots">{"".join(drawn)}</div>'
        f"<h2>recipe</h2>{_table(list(recipe.items()))}</html>\n"
    )


def _columns(rows: Sequence[Mapping[str, float]]) -> dict[str, list[tuple[float, float]]]:
    names = {name for row in rows for name in row if name != "step"}
    return {name: [(row["step"], row[name]) for row in rows if name in row] for name in names}


def _table(rows: Sequence[tuple[str, Any]]) -> str:
    cells = "".join(f"<tr><td>{escape(k)}<td>{escape(str(v))}" for k, v in rows)
    return f"<table>{cells}</table>"


def _plain(name: str) -> str:
    return "images/s" if name == "images_per_s" else name.replace("_", " ")


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def _plot(title: str, points: Sequence[tuple[float, float]]) -> str:
    """A line with its lowest and highest value and its steps written beside it."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = min(ys), max(ys)
    across = (_WIDTH - _EDGE) / max(xs[-1] - xs[0], 1e-12)
    up = (_HEIGHT - 30) / max(high - low, 1e-12)
    line = " ".join(
        f"{_EDGE + (x - xs[0]) * across:.1f},{_HEIGHT - 20 - (y - low) * up:.1f}" for x, y in points
    )
    labels = [
        (_EDGE - 6, 14, "end", f"{high:.3g}"),
        (_EDGE - 6, _HEIGHT - 20, "end", f"{low:.3g}"),
        (_EDGE, _HEIGHT - 4, "start", f"step {xs[0]:,.0f}"),
        (_WIDTH, _HEIGHT - 4, "end", f"{xs[-1]:,.0f}"),
    ]
    texts = "".join(
        f'<text x="{x}" y="{y}" text-anchor="{side}">{text}</text>' for x, y, side, text in labels
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">{texts}'
        f'<line x1="{_EDGE}" y1="{_HEIGHT - 19}" x2="{_WIDTH}" y2="{_HEIGHT - 19}"/>'
        f'<polyline points="{line}"/></svg>'
    )
