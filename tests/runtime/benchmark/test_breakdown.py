"""Where the time goes: parts that are real, and what holds a run up said with its cure."""

import json
from pathlib import Path

import numpy as np
import pytest

from fr_edge.bundle.bundle import open_bundle
from fr_edge.bundle.golden import read_golden
from fr_edge.runtime.benchmark.breakdown import LatencyBreakdown, make_breakdown, measure_breakdown
from fr_edge.runtime.profile import DeviceTimes, node_times
from fr_edge.runtime.session import open_session


def _on_gpu(
    enqueue: float, h2d: float, compute: float, d2h: float, graph: bool = False
) -> LatencyBreakdown:
    return make_breakdown(0.1, 0.05, compute + 0.3, DeviceTimes(enqueue, h2d, compute, d2h, graph))


@pytest.mark.parametrize(
    ("spent", "said"),
    [
        (_on_gpu(0.1, 0.1, 1.0, 0.02), []),
        (_on_gpu(0.9, 0.1, 1.0, 0.02), ["enqueue-bound", "cuda-python"]),
        (_on_gpu(0.9, 0.1, 1.0, 0.02, graph=True), ["enqueue-bound", "larger --batch"]),
        (_on_gpu(0.1, 0.9, 1.0, 0.2), ["transfer-bound", "quarter of the bytes"]),
        (make_breakdown(0.1, 0.1, 5.0), []),
        (make_breakdown(0.1, 2.0, 5.0), ["preprocessing takes 29%"]),
    ],
)
def test_what_holds_a_run_up(spent: LatencyBreakdown, said: list[str]) -> None:
    assert len(spent.advice) == bool(said)
    assert all(word in spent.advice[0] for word in said)


def test_the_parts_of_a_gpu_run_add_up_to_the_call() -> None:
    parts = _on_gpu(0.2, 0.1, 1.0, 0.05).breakdown_ms
    on_device = parts["h2d"] + parts["compute"] + parts["d2h"]
    assert parts["host"] == pytest.approx(parts["embed"] - on_device, abs=1e-3)


def test_a_real_session(mini: Path) -> None:
    bundle = open_bundle(mini)
    session = open_session(bundle, "fp32", threads=1)
    faces = read_golden(bundle).faces
    breakdown = measure_breakdown(session, faces, bundle.spec, 3, None, layers=True)
    assert set(breakdown.breakdown_ms) == {"decode", "preprocess", "embed"}
    assert min(breakdown.breakdown_ms.values()) > 0
    kinds = {layer.kind for layer in breakdown.layers}
    assert "Conv" in kinds
    assert list(breakdown.layers) == sorted(breakdown.layers, key=lambda layer: -layer.ms)
    assert 0 < sum(layer.share for layer in breakdown.layers) <= 1.001
    assert session.embed_tensor(np.zeros((1, *bundle.spec.shape), np.float32)).shape[0] == 1


def test_a_profile_is_the_median_run_without_the_first(tmp_path: Path) -> None:
    """As onnxruntime writes it: four runs, one interrupted, in which a node ran twice as a loop."""
    events = [{"cat": "Session", "name": "model_loading", "ts": 0, "dur": 1, "args": {}}]
    for run, ms in enumerate((50.0, 2.0, 900.0, 2.0)):
        start = 1000 * (run + 1)
        node = {"cat": "Node", "args": {"op_name": "Conv"}, "name": "c_kernel_time"}
        events.append({"cat": "Session", "name": "model_run", "ts": start, "dur": 9, "args": {}})
        events += [{**node, "ts": start + 1, "dur": ms * 1e3 / 2}] * 2
        events.append({**node, "name": "a_kernel_time", "ts": start + 5, "dur": 500})
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(events))
    assert [(row.name, row.kind, row.ms) for row in node_times(path)] == [
        ("c", "Conv", 2.0),
        ("a", "Conv", 0.5),
    ]
