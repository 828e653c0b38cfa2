"""Where a run's time goes, as a backend tells it."""

import json
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any


@dataclass(frozen=True)
class DeviceTimes:
    """One run on a GPU in milliseconds, named and bounded as trtexec's summary does.

    Its latency is `h2d_ms + compute_ms + d2h_ms`, stamped by the GPU; `enqueue_ms` is the host's
    time to queue a run and runs beside them. `graph` is whether a CUDA graph was replayed.
    """

    enqueue_ms: float
    h2d_ms: float
    compute_ms: float
    d2h_ms: float
    graph: bool


@dataclass(frozen=True)
class LayerTime:
    """`ms` is per run; `kind` is the operator, "" where the backend has only names."""

    name: str
    kind: str
    ms: float


def node_times(profile: Path) -> tuple[LayerTime, ...]:
    """An onnxruntime profile, its first run left out, as layers, the slowest first.

    Medians over the runs: a layer that was interrupted once is no slow layer.
    """
    events: list[Mapping[str, Any]] = json.loads(profile.read_text(encoding="utf-8"))
    starts = sorted(event["ts"] for event in events if event["name"] == "model_run")[1:]
    times: dict[tuple[str, str], list[float]] = {}
    for event in events:
        name, run = event["name"], bisect_right(starts, event["ts"]) - 1
        if name.endswith("_kernel_time") and run >= 0:
            key = name.removesuffix("_kernel_time"), event["args"]["op_name"]
            times.setdefault(key, [0.0] * len(starts))[run] += event["dur"] / 1e3
    rows = [LayerTime(name, kind, median(ms)) for (name, kind), ms in times.items()]
    return tuple(sorted(rows, key=lambda row: -row.ms))
