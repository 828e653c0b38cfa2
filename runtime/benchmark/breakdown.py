"""Where the time of a batch goes: decoding, preprocessing, copies, computing, the host."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...arrays import U8
from ...faces.contract import InputSpec, preprocess
from ...faces.images import decode_image
from ..machine.device import cuda_python_install, find_gpus
from ..profile import DeviceTimes, LayerTime
from ..session import Session
from .workload import as_jpegs

_REPEATS = 20  # of each part; the median counts
_LAYER_RUNS = 20  # that a profile is taken of
_MAX_LAYERS = 15  # slowest layers that are reported
_ENQUEUE_BOUND = 0.8  # of the compute time: the share from which trtexec warns
_HEAVY_PREPROCESSING = 0.2  # share of preprocessing and embedding


@dataclass(frozen=True)
class LayerShare:
    """A layer's time in a run, and its share of all layers' time."""

    name: str
    kind: str
    ms: float
    share: float


@dataclass(frozen=True)
class LatencyBreakdown:
    """The parts of one batch's time.

    Attributes:
        breakdown_ms: Part -> median milliseconds: decode, preprocess, embed; on a device also
            enqueue, h2d, compute, d2h and host.
        advice: What slows the run besides the network, each with its cure.
        layers: The slowest layers, where a profile was asked for.
    """

    breakdown_ms: dict[str, float]
    advice: tuple[str, ...]
    layers: tuple[LayerShare, ...]


def measure_breakdown(
    session: Session,
    faces: U8,
    spec: InputSpec,
    batch: int,
    embed_ms: float | None,
    *,
    layers: bool,
) -> LatencyBreakdown:
    """Time the parts of one batch, after it was timed as a whole.

    Args:
        session: The session that was timed.
        faces: `(K, 112, 112, 3) uint8`, RGB.
        spec: The network's input contract.
        batch: Faces in the batch.
        embed_ms: Median of the timed runs, milliseconds; None to time it here.
        layers: Whether to profile the layers.
    """
    images = faces[np.arange(batch) % len(faces)]
    files, inputs = as_jpegs(images), preprocess(images, spec)
    times = [session.device_times(images) for _ in range(_REPEATS)]
    device = _median_times([t for t in times if t is not None])
    if embed_ms is None:
        pixels = session.uint8_input
        embed_ms = _median_ms(
            lambda: session.embed(images) if pixels else session.embed_tensor(inputs)
        )
    return make_breakdown(
        _median_ms(lambda: [decode_image(data, "golden face") for data in files]),
        0.0 if session.uint8_input else _median_ms(lambda: preprocess(images, spec)),
        embed_ms,
        device,
        session.layer_times(images, _LAYER_RUNS) if layers else (),
    )


def make_breakdown(
    decode_ms: float,
    preprocess_ms: float,
    embed_ms: float,
    device: DeviceTimes | None = None,
    layers: Sequence[LayerTime] = (),
) -> LatencyBreakdown:
    """Put measured parts together, with advice.

    Args:
        decode_ms: JPEG bytes to pixels, milliseconds for the batch.
        preprocess_ms: Pixels to the network's input, 0 where the engine does it.
        embed_ms: The session's whole call.
        device: The times on a device, None on a CPU.
        layers: The profile, the slowest layer first.
    """
    parts = {"decode": decode_ms, "preprocess": preprocess_ms, "embed": embed_ms}
    if device:
        on_device = device.h2d_ms + device.compute_ms + device.d2h_ms
        parts |= {
            "enqueue": device.enqueue_ms,
            "h2d": device.h2d_ms,
            "compute": device.compute_ms,
            "d2h": device.d2h_ms,
            "host": max(0.0, embed_ms - on_device),
        }
    total = sum(layer.ms for layer in layers)
    shares = [LayerShare(row.name, row.kind, row.ms, row.ms / total) for row in layers]
    advice = (*_host_advice(preprocess_ms, embed_ms), *(_device_advice(device) if device else ()))
    return LatencyBreakdown(parts, advice, tuple(shares[:_MAX_LAYERS]))


def _host_advice(preprocess_ms: float, embed_ms: float) -> list[str]:
    share = preprocess_ms / (preprocess_ms + embed_ms)
    if share <= _HEAVY_PREPROCESSING:
        return []
    return [
        f"preprocessing takes {share:.0%} of preprocessing and embedding; an engine built with"
        " --input crop does it in the network"
    ]


def _device_advice(device: DeviceTimes) -> list[str]:
    advice = []
    if device.enqueue_ms > _ENQUEUE_BOUND * device.compute_ms:
        install = cuda_python_install(find_gpus().driver)
        cure = "a larger --batch" if device.graph else f"CUDA graphs: {install}"
        advice.append(
            f"enqueue-bound: queueing takes {device.enqueue_ms:.3f} ms of the host, computing"
            f" {device.compute_ms:.3f} ms; {cure}"
        )
    copies_ms = device.h2d_ms + device.d2h_ms
    if copies_ms > device.compute_ms:
        advice.append(
            f"transfer-bound: copies take {copies_ms:.3f} ms, computing {device.compute_ms:.3f} ms,"
            " from pinned memory already; an engine built with --input crop moves a quarter of"
            " the bytes"
        )
    return advice


def _median_ms(run: Callable[[], object]) -> float:
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter_ns()
        run()
        times.append(time.perf_counter_ns() - start)
    return float(np.median(times)) / 1e6


def _median_times(times: Sequence[DeviceTimes]) -> DeviceTimes | None:
    if not times:
        return None
    names = ("enqueue_ms", "h2d_ms", "compute_ms", "d2h_ms")
    medians = {name: float(np.median([getattr(t, name) for t in times])) for name in names}
    return DeviceTimes(**medians, graph=times[-1].graph)
