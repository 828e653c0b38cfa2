"""Where the time of a batch goes: decoding, preprocessing, to the device, computing, back, host."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...faces.contract import InputSpec, preprocess
from ...faces.images import decode_image
from ..profile import DeviceTimes, LayerTime
from ..session import Session
from .workload import as_jpegs

_TIMES = 20

_LAYER_RUNS = 20

_SHOWN = 15

_ENQUEUE_BOUND = 0.8
"""Of the compute time: the share from which trtexec warns of it."""

_HEAVY = 0.2


@dataclass(frozen=True)
class LatencyBreakdown:
    """Medians in milliseconds for one batch; `split` where a device is asked, `layers` where that
    was wanted and the backend tells them."""

    decode_ms: float
    preprocess_ms: float
    embed_ms: float
    split: DeviceTimes | None = None
    layers: tuple[LayerTime, ...] = ()

    @property
    def advice(self) -> tuple[str, ...]:
        """What holds the run up besides the network, each with its cure."""
        found = []
        if self.preprocess_ms > _HEAVY * (self.preprocess_ms + self.embed_ms):
            share = self.preprocess_ms / (self.preprocess_ms + self.embed_ms)
            found.append(
                f"preprocessing takes {share:.0%} of preprocessing and embedding; an engine"
                " built with --uint8-input does it in the network"
            )
        split = self.split
        if split and split.enqueue_ms > _ENQUEUE_BOUND * split.compute_ms:
            cure = "a larger --batch" if split.graph else "CUDA graphs: pip install cuda-python"
            found.append(
                f"enqueue-bound: queueing takes {split.enqueue_ms:.3f} ms of the host, computing"
                f" {split.compute_ms:.3f} ms; {cure}"
            )
        if split and split.h2d_ms + split.d2h_ms > split.compute_ms:
            found.append(
                f"transfer-bound: copies take {split.h2d_ms + split.d2h_ms:.3f} ms, computing"
                f" {split.compute_ms:.3f} ms, from pinned memory already; an engine built with"
                " --uint8-input moves a quarter of the bytes"
            )
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        parts = {
            "decode": self.decode_ms,
            "preprocess": self.preprocess_ms,
            "embed": self.embed_ms,
        }
        if self.split:
            split = {k: v for k, v in asdict(self.split).items() if k != "graph"}
            parts |= {key.removesuffix("_ms"): value for key, value in split.items()}
            on_device = self.split.h2d_ms + self.split.compute_ms + self.split.d2h_ms
            parts["host"] = max(0.0, self.embed_ms - on_device)
        total = sum(layer.ms for layer in self.layers)
        return {
            "spent_ms": {name: round(value, 4) for name, value in parts.items()},
            "advice": list(self.advice),
            "layers": [
                {**asdict(layer), "ms": round(layer.ms, 4), "share": round(layer.ms / total, 4)}
                for layer in self.layers[:_SHOWN]
            ],
        }


def time_parts(
    session: Session,
    faces: npt.NDArray[np.uint8],
    spec: InputSpec,
    size: int,
    embed_ms: float | None,
    *,
    layers: bool,
) -> LatencyBreakdown:
    """Take the parts of one batch of `faces (K, 112, 112, 3)` apart, after it was timed whole.

    `embed_ms` is the median of those runs, None to time it here.
    """
    batch = faces[np.arange(size) % len(faces)]
    files, inputs = as_jpegs(batch), preprocess(batch, spec)
    splits = [s for _ in range(_TIMES) if (s := session.device_times(batch)) is not None]
    return LatencyBreakdown(
        _median_ms(lambda: [decode_image(data, "golden face") for data in files]),
        _median_ms(lambda: preprocess(batch, spec)),
        _median_ms(lambda: session.embed_tensor(inputs)) if embed_ms is None else embed_ms,
        _middle(splits) if splits else None,
        session.layer_times(batch, _LAYER_RUNS) if layers else (),
    )


def _median_ms(run: Callable[[], object]) -> float:
    times = []
    for _ in range(_TIMES):
        start = time.perf_counter_ns()
        run()
        times.append(time.perf_counter_ns() - start)
    return float(np.median(times)) / 1e6


def _middle(splits: Sequence[DeviceTimes]) -> DeviceTimes:
    names = ("enqueue_ms", "h2d_ms", "compute_ms", "d2h_ms")
    medians = {name: float(np.median([getattr(s, name) for s in splits])) for name in names}
    return DeviceTimes(**medians, graph=splits[-1].graph)
