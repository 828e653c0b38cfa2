"""How long assignments of INT8 to layers take, each built as an engine and run on this machine.

For calibration's accuracy budget, where an engine can run; elsewhere times are counted
(`calibration.latency`). TensorRT's side has never run on a GPU by this project so far.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from math import sqrt
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import onnx

from ..bundle.manifest import Bundle
from ..calibration.latency_model import LatencyModel, LatencyOf, QuantizeChoice, counted_latency
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

_SECONDS = 1.0
"""Of racing an assignment against all-float."""

_TWINS = 3
"""Races of the float engine with its twin: what they differ by is noise, and a layer's saving is the
difference of two."""


def latency_here(bundle: Bundle, backend: str = "auto", seconds: float = _SECONDS) -> LatencyOf:
    """Times of engines of `backend`, one face at a time; `auto` measures with TensorRT where it can
    run, and counts elsewhere: a CPU's times say nothing of a board's GPU.

    Raises UsageError for an unknown backend, MachineError for one that cannot run here. Timing
    raises ModelError for an assignment of which no engine can be made.
    """
    if backend == "auto" and lacking("tensorrt"):
        return counted_latency
    chosen = pick_backend(backend)

    def measured(model: onnx.ModelProto, quantised: QuantizeChoice) -> LatencyModel:
        spec, build = bundle.spec, builder(bundle, chosen)
        face = _face(spec)

        @cache
        def base() -> bytes:
            return build(model)

        def ratio(engine: bytes) -> float:
            with opened(base(), spec, chosen) as floats, opened(engine, spec, chosen) as run:
                first, second = interleaved_min_times((floats, run), face, seconds)
            return second / first

        def cost(choice: Int8Choice) -> float:
            with named(choice):
                return ratio(build(quantised(choice))) if choice.int8 else 1.0

        def noise() -> float:
            return sqrt(2) * max(abs(1.0 - ratio(base())) for _ in range(_TWINS))

        device = describe_device()
        name = device.jetson or (device.cpu if chosen == ONNXRUNTIME else ", ".join(device.gpu))
        return LatencyModel(f"engines of {chosen} on {name}, measured", cost, noise)

    return measured


def builder(bundle: Bundle, backend: str) -> Callable[[onnx.ModelProto], bytes]:
    """What makes an engine of a float or Q/DQ variant of the bundle's network.

    On the CPU every INT8 layer that has an integer kernel gets it, faster or not. TensorRT
    remembers from build to build which kernels were fast.
    """
    known = b""

    def build(model: onnx.ModelProto) -> bytes:
        nonlocal known
        if backend == ONNXRUNTIME:
            flavour = cpu_model(model, tuple(integer_layers(model)))
            return bytes(flavour.SerializeToString())
        compiled = compile_variant(bundle, model, backend, EngineOptions(), known)
        known = compiled.timing_cache
        return compiled.plan

    return build


@contextmanager
def opened(engine: bytes, spec: InputSpec, backend: str) -> Iterator[TimedCall]:
    if backend == ONNXRUNTIME:
        yield cpu_runner(engine)
        return
    with TemporaryDirectory() as folder:
        plan = Path(folder) / "choice.plan"
        plan.write_bytes(engine)
        with GpuSession(plan, "int8", backend, spec) as session:
            yield session.embed_tensor


@contextmanager
def named(choice: Int8Choice) -> Iterator[None]:
    """A ModelError that is raised inside tells which assignment it met."""
    try:
        yield
    except ModelError as error:
        left_out = [name for name, why in choice.kept.items() if why != GROUPED]
        some = f" ({', '.join(left_out[:3])}{', ...' if left_out[3:] else ''})" if left_out else ""
        raise ModelError(
            f"{len(choice.int8)} layers in INT8, {len(left_out)} left out{some}, cannot be timed:"
            f" {error.message}",
            error.hint,
        ) from error


def _face(spec: InputSpec) -> npt.NDArray[np.float32]:
    random = np.random.default_rng(0)
    return random.uniform(-1, 1, (1, *spec.shape)).astype(np.float32)
