"""Where a run's time goes, as a backend reports it."""

from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ..documents import read_json


@dataclass(frozen=True)
class DeviceTimes:
    """One run on a GPU in milliseconds, in trtexec's terms.

    Its latency is `h2d_ms + compute_ms + d2h_ms`, measured by events on the GPU.

    Attributes:
        enqueue_ms: The host's time to queue a run, beside the others.
        h2d_ms: Copy to the device.
        compute_ms: Computation.
        d2h_ms: Copy from the device.
        graph: Whether a CUDA graph was replayed.
    """

    enqueue_ms: float
    h2d_ms: float
    compute_ms: float
    d2h_ms: float
    graph: bool


@dataclass(frozen=True)
class LayerTime:
    """One layer of a profile.

    Attributes:
        name: The layer's name.
        kind: The operator, "" where the backend has only names.
        ms: Milliseconds per run.
    """

    name: str
    kind: str
    ms: float


def node_times(profile: Path) -> tuple[LayerTime, ...]:
    """Read an onnxruntime profile; its first run is left out.

    Args:
        profile: The JSON file.

    Returns:
        The nodes, the slowest first, with medians over the runs: a node that was interrupted once
        is not slow.
    """
    events = read_json(profile, list[dict[str, Any]])
    starts = sorted(event["ts"] for event in events if event["name"] == "model_run")[1:]
    times: dict[tuple[str, str], list[float]] = {}
    for event in events:
        name, run = event["name"], bisect_right(starts, event["ts"]) - 1
        if name.endswith("_kernel_time") and run >= 0:
            key = name.removesuffix("_kernel_time"), event["args"]["op_name"]
            times.setdefault(key, [0.0] * len(starts))[run] += event["dur"] / 1e3
    rows = [LayerTime(name, kind, median(ms)) for (name, kind), ms in times.items()]
    return tuple(sorted(rows, key=lambda row: -row.ms))
