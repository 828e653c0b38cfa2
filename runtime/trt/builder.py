"""One builder for every TensorRT: an ONNX network and options in, a plan and its layers out.

It drives the Python API that `tensorrt` 8.6, 10, 11 and `tensorrt_rtx` share; where they differ,
the attribute that exists decides, never a version number.
"""

import logging
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ...errors import MachineError, ModelError
from ...graph.frame_input import PREFIX
from ..cuda.interface import on_selected_gpu
from ..machine.backends import MODULES
from ..machine.device import find_gpus, selected_gpu
from .config import EngineOptions, configure, set_timing_cache, strongly_typed
from .errors import (
    MessageLog,
    explain_load,
    explain_refusal,
    explain_start,
    out_of_memory,
    recorder,
)
from .layers import EngineLayer, count_untyped, layers_in_json, layers_in_log

if TYPE_CHECKING:
    import tensorrt

logger = logging.getLogger(__name__)

Shape = tuple[int, ...]
InputSizes = tuple[Shape, Shape, Shape]  # of one input: smallest, typical and largest

_SMALLER_MB = (1024, 256)  # workspaces to try when the build runs out of memory
_SHARED_PART = 4  # of a Jetson's memory a workspace takes one part in four, unless it is given


@dataclass(frozen=True)
class Compiled:
    """A compiled network.

    Attributes:
        plan: The serialized engine.
        layers: Its layers; empty where TensorRT did not report them.
        timing_cache: Kernel timings for the next build; b"" where none were kept.
    """

    plan: bytes
    layers: tuple[EngineLayer, ...]
    timing_cache: bytes


def load_library(backend: str) -> Any:
    """Import TensorRT's module.

    Args:
        backend: "tensorrt" or "tensorrt-rtx".

    Returns:
        The module `tensorrt` or `tensorrt_rtx`.

    Raises:
        MachineError: The module cannot be loaded.
    """
    try:
        return import_module(MODULES[backend])
    except Exception as error:  # a damaged package, or one for another NumPy, raises anything
        raise MachineError(
            f"{MODULES[backend]} cannot be loaded: {error or type(error).__name__}",
            "`fr-edge doctor` shows what is missing and how to get it",
        ) from error


def compile_plan(
    trt: Any,
    model: bytes,
    shape: tuple[int, int, int],
    precision: str,
    options: EngineOptions,
    timing_cache: bytes | None = None,
    calibrator: Any = None,
    sizes: list[InputSizes] | None = None,
) -> Compiled:
    """Parse and build an ONNX network with one input `(batch, *shape)`, or with frame and landmarks.

    Args:
        trt: The module `tensorrt` or `tensorrt_rtx`.
        model: The serialized network.
        shape: Of one face as the network takes it; not used for a frame engine.
        precision: "fp32", "fp16", "fp8" or "int8".
        options: How to build it.
        timing_cache: An earlier build's, b"" to begin one, None to keep none.
        calibrator: For implicit quantisation of a network without Q and DQ.
        sizes: Of each input, where they are not those of `shape` and the options.

    Raises:
        ModelError: TensorRT refuses the network; the message carries its reason.
        MachineError: A GPU is needed and missing, or memory does not suffice.
        UsageError: An option that this TensorRT does not have.
    """
    wanted = options.workspace_mb
    problems: list[str] = []
    for size in (wanted,) if wanted else _workspaces():
        log = recorder(trt)
        if problems:
            logger.warning("out of GPU memory: the workspace is cut to %d MB", size)
        try:
            with on_selected_gpu(), log:
                return _compile(
                    trt,
                    log,
                    model,
                    sizes or _profile_sizes(shape, options),
                    precision,
                    options,
                    size,
                    timing_cache,
                    calibrator,
                )
        except _NoMemory:
            problems = log.problems
    raise MachineError(
        f"a workspace of {wanted} MB does not suffice: {problems[0]}"
        if wanted
        else f"the GPU has too little memory to build this engine: {problems[0]}",
        "raise --workspace" if wanted else "close other programs, or lower --batch",
    )


def _workspaces() -> tuple[int | None, ...]:
    """What to try, MB; None for TensorRT's own limit, all of the GPU's memory.

    Where the GPU shares the CPU's, all of it is not free: the kernel would end programs instead of
    refusing memory, and the build would never try less.
    """
    gpu = selected_gpu()
    first = gpu.memory_mb // _SHARED_PART if gpu is not None and gpu.integrated else None
    return (first, *(size for size in _SMALLER_MB if first is None or size < first))


class _NoMemory(Exception):
    """The builder ran out of GPU memory; a smaller workspace may do."""


def _compile(
    trt: Any,
    log: MessageLog,
    model: bytes,
    sizes: list[InputSizes],
    precision: str,
    options: EngineOptions,
    workspace_mb: int | None,
    timing_cache: bytes | None,
    calibrator: Any,
) -> Compiled:
    builder: tensorrt.Builder = _started(trt, "Builder", log)
    strong = strongly_typed(trt, options)
    network = _parsed(trt, builder, log, model, sizes, options, strong)
    config = builder.create_builder_config()
    configure(trt, builder, config, options, precision, workspace_mb)
    if options.input_kind == "frame" and not strong:
        _keep_float32(trt, network, config)
    profile = builder.create_optimization_profile()
    for index, shapes in enumerate(sizes):
        profile.set_shape(network.get_input(index).name, *map(trt.Dims, shapes))
    config.add_optimization_profile(profile)
    if calibrator is not None:
        config.int8_calibrator = calibrator
    if timing_cache is not None:
        set_timing_cache(config, timing_cache)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        if out_of_memory(log.problems):
            raise _NoMemory
        raise explain_refusal("build", log.problems)
    plan = bytes(serialized)
    layers = _layers(trt, log, plan, options)
    cache = b"" if timing_cache is None else bytes(config.get_timing_cache().serialize())
    return Compiled(plan, tuple(layers), cache)


def _parsed(
    trt: Any,
    builder: "tensorrt.Builder",
    log: MessageLog,
    model: bytes,
    sizes: list[InputSizes],
    options: EngineOptions,
    strong: bool,
) -> "tensorrt.INetworkDefinition":
    creation, flags = trt.NetworkDefinitionCreationFlag, 0
    if strong:
        flags |= 1 << int(creation.STRONGLY_TYPED)
    elif hasattr(creation, "EXPLICIT_BATCH"):
        flags |= 1 << int(creation.EXPLICIT_BATCH)
    network = builder.create_network(flags)
    parser: tensorrt.OnnxParser = trt.OnnxParser(network, log.logger)
    if not parser.parse(model):
        errors = [_one_line(parser.get_error(index)) for index in range(parser.num_errors)]
        raise explain_refusal("parse", errors or log.problems)
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    shapes = [tuple(int(size) for size in value.shape) for value in inputs]
    if len(shapes) != len(sizes) or not all(map(_fits, shapes, sizes)):
        texts = [f"(batch, {', '.join(map(str, each[0][1:]))})" for each in sizes]
        if options.input_kind == "frame":
            texts[0] = "(1, height, width, 3)"
        raise ModelError(
            f"the network takes {len(shapes)} inputs, {' and '.join(map(str, shapes))}; expected"
            f" {('one', 'two')[len(texts) - 1]}, {' and '.join(texts)}",
            "export it again with `fr-edge export`",
        )
    return network


def _profile_sizes(shape: Shape, options: EngineOptions) -> list[InputSizes]:
    """Smallest, typical and largest shape of each input."""
    if options.input_kind != "frame":
        small, typical, large = ((size, *shape) for size in options.batch)
        return [(small, typical, large)]
    frames = [(1, *size, 3) for size in options.frame]
    landmarks = [(size, 5, 2) for size in options.batch]
    return [(frames[0], frames[1], frames[2]), (landmarks[0], landmarks[1], landmarks[2])]


def _fits(shape: Shape, sizes: InputSizes) -> bool:
    """Whether a network's input has the profile's sizes, -1 where they vary; any batch will do."""
    ranges = zip(*(size[1:] for size in sizes), strict=True)
    return shape[1:] == tuple(given[0] if len({*given}) == 1 else -1 for given in ranges)


def _keep_float32(
    trt: Any, network: "tensorrt.INetworkDefinition", config: "tensorrt.IBuilderConfig"
) -> None:
    """Let no flag lower the places of pixels, which FP16 would round to whole ones and more."""
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        own = layer.name.startswith(PREFIX)
        if own and layer.num_outputs and layer.get_output(0).dtype == trt.float32:
            layer.precision = trt.float32
    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)


def _layers(trt: Any, log: MessageLog, plan: bytes, options: EngineOptions) -> list[EngineLayer]:
    """The layers by the log, or by the engine's inspector where the log lacks types."""
    logged = layers_in_log(log.table)
    if logged and not count_untyped(logged):
        return logged
    inspected = layers_in_json(inspect_plan(trt, log, plan, options))
    return max(inspected, logged, key=lambda rows: len(rows) - count_untyped(rows))


def inspect_plan(trt: Any, log: MessageLog, plan: bytes, options: EngineOptions) -> str:
    """The layer table from the engine itself; loading it needs the GPU that it was built for.

    Of an engine with a dynamic batch the inspector reports types only for a context whose input
    has a shape (NvInferRuntime.h, `IEngineInspector::setExecutionContext`).

    Args:
        trt: The module `tensorrt` or `tensorrt_rtx`.
        log: Of `recorder`.
        plan: The serialized engine.
        options: How it was built.

    Returns:
        The inspector's JSON text, "{}" where TensorRT does not load the plan.
    """
    runtime = open_runtime(trt, log, host_code=options.version_compatible, dla=options.dla)
    engine: tensorrt.ICudaEngine | None = runtime.deserialize_cuda_engine(plan)
    return "{}" if engine is None else inspect_engine(trt, engine)


def inspect_engine(trt: Any, engine: "tensorrt.ICudaEngine") -> str:
    """The layer table of a loaded engine.

    Args:
        trt: The module `tensorrt` or `tensorrt_rtx`.
        engine: The engine, on the current GPU.

    Returns:
        The inspector's JSON text.
    """
    inspector = engine.create_engine_inspector()
    context: tensorrt.IExecutionContext | None = engine.create_execution_context()
    if context is not None:
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        typical = [tuple(engine.get_tensor_profile_shape(name, 0)[1]) for name in inputs]
        if all(map(context.set_input_shape, inputs, typical)):
            inspector.execution_context = context
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def open_runtime(
    trt: Any, log: MessageLog, *, host_code: bool, dla: int | None = None
) -> "tensorrt.Runtime":
    """A runtime that loads plans.

    Args:
        trt: The module `tensorrt` or `tensorrt_rtx`.
        log: Of `recorder`.
        host_code: Whether plans may bring code that runs on the CPU, as version-compatible ones do
            (they carry NVIDIA's lean runtime). Only for a plan from a source that is trusted: it
            can do whatever this program can.
        dla: The DLA core that the plan was built for; TensorRT would take 0.

    Raises:
        MachineError: TensorRT does not start: the driver is too old for it, or there is no GPU.
    """
    runtime: tensorrt.Runtime = _started(trt, "Runtime", log)
    if host_code:
        runtime.engine_host_code_allowed = True
    if dla is not None:
        runtime.DLA_core = dla
    return runtime


def load_engine(
    trt: Any, runtime: "tensorrt.Runtime", log: MessageLog, plan: bytes, file: str, hint: str
) -> "tensorrt.ICudaEngine":
    """Load a plan.

    Args:
        trt: The module `tensorrt` or `tensorrt_rtx`.
        runtime: From `open_runtime`.
        log: Its log.
        plan: The serialized plan.
        file: Its name.
        hint: What to do when TensorRT refuses the plan.

    Raises:
        MachineError: TensorRT refuses the plan, or the driver is too old for it.
    """
    engine: tensorrt.ICudaEngine | None = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        module, driver = (trt.__name__, str(trt.__version__)), find_gpus().driver
        raise explain_load(*module, file, log.problems, driver, hint)
    return engine


def _started(trt: Any, name: str, log: MessageLog) -> Any:
    """An object of TensorRT's own; without a driver that fits, pybind11 gives a TypeError instead."""
    try:
        return getattr(trt, name)(log.logger)
    except TypeError as error:
        raise explain_start(
            trt.__name__, str(trt.__version__), log.problems or [str(error)], find_gpus().driver
        ) from error


def _one_line(error: "tensorrt.ParserError") -> str:
    if not hasattr(error, "node_name"):  # TensorRT 8 gives the node's number only
        return f"node {error.node()}: {error.desc()}"
    node = f"node {error.node_name()} ({error.node_operator()}): " if error.node_name() else ""
    return f"{node}{error.desc()}"
