"""Latency of INT8 assignments, each built as an engine and run on this machine.

For calibration's accuracy budget, where an engine can run; elsewhere latencies are estimated by
counting (`calibration.search.latency_model`). This project has not run TensorRT's side on a GPU yet.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from math import sqrt
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx

from ..arrays import F32
from ..bundle.manifest import Bundle
from ..calibration.search.latency_model import (
    LatencyModel,
    LatencyOf,
    QuantizeChoice,
    counted_latency,
)
from ..errors import ModelError
from ..faces.contract import InputSpec
from ..graph.cpu_int8 import cpu_model, integer_layers
from ..graph.layers import GROUPED, Int8Choice
from .cpu_kernel_selection import TimedCall, cpu_runner, interleaved_min_times
from .machine.backends import lacking, pick_backend
from .machine.device import describe_device
from .onnxruntime_session import ONNXRUNTIME
from .tensorrt_session import GpuSession
from .trt.bundle_plan import compile_variant
from .trt.config import EngineOptions

_SECONDS = 1.0  # per comparison of an assignment with all-float
_REPEATS = 3  # comparisons of the float engine with itself, for the noise


def latency_here(bundle: Bundle, backend: str = "auto", seconds: float = _SECONDS) -> LatencyOf:
    """A latency model that builds and times engines, one face at a time.

    Args:
        bundle: An open bundle.
        backend: "onnxruntime", "tensorrt", "tensorrt-rtx", or "auto": TensorRT where it can run;
            elsewhere latencies are counted, for a CPU's latencies do not predict a GPU's.
        seconds: Duration of one comparison, about.

    Returns:
        For a network and its quantisation, the latency model. Its `cost` raises ModelError for an
        assignment of which no engine can be built.

    Raises:
        UsageError: An unknown backend.
        MachineError: The backend cannot run here.
    """
    if backend == "auto" and lacking("tensorrt"):
        return counted_latency
    chosen = pick_backend(backend)

    def measured(model: onnx.ModelProto, quantised: QuantizeChoice) -> LatencyModel:
        spec, build = bundle.spec, engine_builder(bundle, chosen)
        face = _random_face(spec)

        @cache
        def float_engine() -> bytes:
            return build(model)

        def ratio(engine: bytes) -> float:
            with (
                opened_engine(float_engine(), spec, chosen) as floats,
                opened_engine(engine, spec, chosen) as run,
            ):
                float_s, engine_s = interleaved_min_times((floats, run), face, seconds)
            return engine_s / float_s

        def cost(choice: Int8Choice) -> float:
            with _naming(choice):
                return ratio(build(quantised(choice))) if choice.int8 else 1.0

        def noise() -> float:  # of a layer's saving, the difference of two costs
            return sqrt(2) * max(abs(1.0 - ratio(float_engine())) for _ in range(_REPEATS))

        device = describe_device()
        name = device.jetson or (device.cpu if chosen == ONNXRUNTIME else ", ".join(device.gpu))
        return LatencyModel(f"engines of {chosen} on {name}, measured", cost, noise)

    return measured


def engine_builder(bundle: Bundle, backend: str) -> Callable[[onnx.ModelProto], bytes]:
    """A function that builds an engine of a variant of a bundle's network.

    On the CPU every INT8 layer that has an integer kernel gets it, faster or not. TensorRT's
    kernel timings are kept from build to build.

    Args:
        bundle: An open bundle.
        backend: "onnxruntime", "tensorrt" or "tensorrt-rtx".

    Returns:
        For a model, float or with Q and DQ, the serialized engine.
    """
    timings = b""

    def build(model: onnx.ModelProto) -> bytes:
        nonlocal timings
        if backend == ONNXRUNTIME:
            return bytes(cpu_model(model, tuple(integer_layers(model))).SerializeToString())
        compiled = compile_variant(bundle, model, backend, EngineOptions(), timings)
        timings = compiled.timing_cache
        return compiled.plan

    return build


@contextmanager
def opened_engine(engine: bytes, spec: InputSpec, backend: str) -> Iterator[TimedCall]:
    """Open a serialized engine for timing.

    Args:
        engine: What `engine_builder` built.
        spec: The network's input contract.
        backend: The backend it was built for.

    Yields:
        A function of `(N, 3, H, W) float32`.
    """
    if backend == ONNXRUNTIME:
        yield cpu_runner(engine)
        return
    with TemporaryDirectory() as folder:
        path = Path(folder) / "variant.plan"
        path.write_bytes(engine)
        with GpuSession(path, "int8", backend, spec) as session:
            yield session.embed_tensor


@contextmanager
def _naming(choice: Int8Choice) -> Iterator[None]:
    """Name the assignment in a ModelError that is raised inside."""
    try:
        yield
    except ModelError as error:
        left_out = [name for name, why in choice.float_layers.items() if why != GROUPED]
        some = f" ({', '.join(left_out[:3])}{', ...' if left_out[3:] else ''})" if left_out else ""
        raise ModelError(
            f"{len(choice.int8)} layers in INT8, {len(left_out)} left out{some}, cannot be timed:"
            f" {error.message}",
            error.hint,
        ) from error


def _random_face(spec: InputSpec) -> F32:
    return np.random.default_rng(0).uniform(-1, 1, (1, *spec.shape)).astype(np.float32)
