"""Two reports side by side: what changed, what is noise, what cannot be compared."""

import json
from pathlib import Path
from typing import Any

import pytest

from fr_edge.errors import DataError, UsageError
from fr_edge.faces.sources import Faces
from fr_edge.runtime.evaluation.compare import compare
from fr_edge.runtime.evaluation.verify import verify


def _timing(path: Path, p50: float, half: float = 0.1, **changes: Any) -> Path:
    names = ("p50", "p90", "p99")
    run = {
        "batch": 1,
        "verdict": "VALID",
        "latency_ms": {name: p50 * (1 + i / 10) for i, name in enumerate(names)},
        "interval_95_ms": {
            name: [p50 * (1 + i / 10) - half, p50 * (1 + i / 10) + half]
            for i, name in enumerate(names)
        },
        "throughput_per_s": 1000 / p50,
    }
    report = {
        "engine": "int8",
        "backend": "x",
        "verdict": "VALID",
        "runs": [run],
        "device": {"cpu": "one", "power_mode": "15W"},
        **changes,
    }
    path.write_text(json.dumps(report))
    return path


@pytest.mark.parametrize(
    ("second", "verdict", "passed"),
    [
        (5.0, "equal", True),
        (5.1, "within noise", True),
        (5.6, "worse", False),
        (4.0, "better", True),
    ],
)
def test_latency_against_an_earlier_run(
    second: float, verdict: str, passed: bool, tmp_path: Path
) -> None:
    found = compare(_timing(tmp_path / "a", 5.0), _timing(tmp_path / "b", second), 0.05)
    change = next(c for c in found.changes if "p50" in c.name)
    assert change.verdict == verdict
    assert change.relative == pytest.approx(second / 5 - 1)
    assert found.passed is passed
    assert found.differences == ()


def test_noise_wider_than_the_limit_is_no_regression(tmp_path: Path) -> None:
    noisy = _timing(tmp_path / "a", 5.0, half=1.0), _timing(tmp_path / "b", 6.0, half=1.0)
    assert compare(*noisy, 0.05).passed


def test_what_differs_besides_the_figures_is_said(tmp_path: Path) -> None:
    other = {"cpu": "one", "power_mode": "MAXN"}
    found = compare(
        _timing(tmp_path / "a", 5.0),
        _timing(tmp_path / "b", 5.0, device=other, engine="fp16", verdict="INVALID"),
    )
    text = "\n".join(found.differences)
    assert "power_mode 15W and MAXN" in text
    assert "engine int8 and fp16" in text
    assert "second is INVALID" in text


def test_settings_that_one_side_ran_and_figures_without_interval(tmp_path: Path) -> None:
    reports = [json.loads(_timing(tmp_path / "a", p50).read_text()) for p50 in (5.0, 6.0)]
    for report, rate in zip(reports, (20, 50), strict=True):
        report["runs"] += [{**report["runs"][0], "rate": each} for each in (rate, 60)]
        report["runs"][0]["interval_95_ms"]["p99"] = None
    for name, report in zip("ab", reports, strict=True):
        (tmp_path / name).write_text(json.dumps(report))
    found = compare(tmp_path / "a", tmp_path / "b")
    assert "benchmark: batch 1, 20 queries/s was run in the first only" in found.differences
    assert "benchmark: batch 1, 50 queries/s was run in the second only" in found.differences
    verdicts = {change.name: change.verdict for change in found.changes}
    assert verdicts["benchmark: batch 1 p99 ms"] == "unsure"
    assert verdicts["benchmark: batch 1 p50 ms"] == "worse"
    assert verdicts["benchmark: batch 1, 60 queries/s p50 ms"] == "worse"


def test_two_bundles(mini: Path, people: Faces, tmp_path: Path) -> None:
    import shutil

    int8 = verify(mini, "int8", artifact="graph", faces=people)
    fp32 = verify(mini, "fp32", artifact="graph", faces=people)
    shutil.copytree(mini, tmp_path / "other")
    found = compare(mini, tmp_path / "other")
    assert {c.name.rsplit(":", 1)[0] for c in found.changes} == {
        "verify int8 synthetic:12x4@9 graph",
        "verify fp32 synthetic:12x4@9 graph",
    }
    assert {c.verdict for c in found.changes} == {"equal"}
    between = compare(mini / fp32.report, mini / int8.report)
    assert any("engine fp32 and int8" in text for text in between.differences)
    assert any(
        f"file model.int8.onnx, sha256 {int8.artifact.sha256[:12]}" in text
        and "execution" not in text
        for text in between.differences
    )
    assert next(c for c in between.changes if "cosine min" in c.name).second < 1


def test_nothing_in_common(mini: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no figure in common"):
        compare(mini, _timing(tmp_path / "b", 5.0))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"runs": [{}]}', '{"gates": [], "tar": 3}'])
def test_files_that_are_no_reports(text: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_text(text)
    with pytest.raises(DataError):
        compare(tmp_path / "a", tmp_path / "a")
    with pytest.raises(DataError, match="no bundle or report"):
        compare(tmp_path / "none", tmp_path / "a")
