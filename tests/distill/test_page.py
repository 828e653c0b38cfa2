"""`reports/training.html` in a browser, on a wide screen and on a phone's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fr_edge.distill.page import training_page
from fr_edge.distill.recipe import Recipe, recipe_to_json

_ASKS = (
    "<script>const root = document.documentElement; root.dataset.fits ="
    " String(root.scrollWidth <= window.innerWidth)</script>"
)


def report() -> dict[str, Any]:
    curve = [
        {"step": float(k), "lr": 0.1, "loss": 9 / k, "cosine": 0.5, "alpha": 0.4, "lambda": 0.6}
        for k in range(1, 40)
    ]
    verification = [{"step": 0.0, "accuracy": 0.5}, {"step": 39.0, "accuracy": 0.9}]
    names = ("faces", "images", "identities", "device", "precision", "steps", "seconds")
    return {
        **dict.fromkeys(names, 1_234_567),
        "recipe": recipe_to_json(Recipe(tensorboard="/a/long/name" * 20)),
        "faces": "/nobody/<b>&knows" * 9,
        "images_per_s": 1234.5,
        "accuracy": 0.9,
        "untrained_accuracy": 0.5,
        "teacher_accuracy": None,
        "best": verification[-1],
        "curve": curve,
        "verification": verification,
    }


@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it_without_complaint(
    width: int, shown: Callable[[Path, int, float], str], tmp_path: Path
) -> None:
    page = tmp_path / "training.html"
    page.write_text(training_page(report()) + _ASKS, encoding="utf-8")
    dom = shown(page, width, 120)
    assert dom.count("<polyline") == 6
    assert 'data-fits="true"' in dom
    assert "1,234,567" in dom
    assert "/nobody/&lt;b&gt;&amp;knows" in dom
