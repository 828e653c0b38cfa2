"""One builder for every TensorRT: a network and options in, a plan and what is in it out.

It drives the Python API that `tensorrt` 8.6, 10, 11 and `tensorrt_rtx` share; where they differ,
the attribute that is there decides, never a version number. Knows nothing of bundles.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import MachineError, ModelError, UsageError
from .backends import MODULES
from .engine_layers import EngineLayer, layers_in_json, layers_in_log
from .refusals import out_of_memory, refusal

if TYPE_CHECKING:
    import tensorrt

_SMALLER_MB = (1024, 256)
"""Workspaces to try when the build runs out of memory."""


@dataclass(frozen=True)
class EngineOptions:
    """`batch` is the least, the best and the most faces per run.

    `workspace_mb` None lets TensorRT take what it wants; `level` is its optimisation level, 0 to 5.
    `compute` names the compute capabilities to compile for ("8.6"), where the library can.
    """

    batch: tuple[int, int, int] = (1, 8, 32)
    workspace_mb: int | None = None
    level: int | None = None
    dla: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    compute: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        least, best, most = self.batch
        if not 1 <= least <= best <= most:
            raise UsageError(
                f"batches are least <= best <= most and at least 1, found {self.batch}",
                "for example --batch 1,8,32",
            )
        if self.workspace_mb is not None and self.workspace_mb < 1:
            raise UsageError(f"the workspace is at least 1 MB, found {self.workspace_mb}")
        if self.level is not None and not 0 <= self.level <= 5:
            raise UsageError(f"the optimisation level is 0 to 5, found {self.level}")


@dataclass(frozen=True)
class Compiled:
    """A serialized engine; `layers` is empty where TensorRT did not tell."""

    plan: bytes
    layers: tuple[EngineLayer, ...]
    timing_cache: bytes
    notes: tuple[str, ...]


def load_library(backend: str) -> Any:
    """The module `tensorrt` or `tensorrt_rtx`; raises MachineError when it cannot be loaded."""
    try:
        return import_module(MODULES[backend])
    except (ImportError, OSError) as error:
        raise MachineError(
            f"{MODULES[backend]} cannot be loaded: {error}",
            "`fr-edge doctor` says what is missing and how to get it",
        ) from error


def strongly_typed(trt: Any) -> bool:
    """Whether networks can take their types from the ONNX file, TensorRT 10 and later."""
    return hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


def compile_plan(
    trt: Any,
    model: bytes,
    shape: tuple[int, int, int],
    precision: str,
    options: EngineOptions,
    timing_cache: bytes | None = None,
) -> Compiled:
    """Parse and build an ONNX network with one input `(batch, *shape)`.

    `timing_cache` is an earlier build's, b"" to begin one, None to keep none.

    Raises ModelError with NVIDIA's reason, MachineError without a GPU where one is needed or when
    its memory does not suffice, UsageError for options that this TensorRT does not have.
    """
    wanted = options.workspace_mb
    said: list[str] = []
    for size in (wanted,) if wanted else (None, *_SMALLER_MB):
        log = recorder(trt)
        notes = [f"out of GPU memory: the workspace was cut to {size} MB"] if said else []
        try:
            return _compile(trt, log, model, shape, precision, options, size, timing_cache, notes)
        except _NoMemory:
            said = log.problems
    raise MachineError(
        f"a workspace of {wanted} MB does not suffice: {said[0]}"
        if wanted
        else f"the GPU has too little memory to build this engine: {said[0]}",
        "raise --workspace" if wanted else "close other programs, or lower --batch",
    )


class _NoMemory(Exception):
    """The builder ran out of GPU memory; a smaller workspace may do."""


def _compile(
    trt: Any,
    log: Any,
    model: bytes,
    shape: tuple[int, int, int],
    precision: str,
    options: EngineOptions,
    workspace_mb: int | None,
    timing_cache: bytes | None,
    notes: list[str],
) -> Compiled:
    builder: tensorrt.Builder = trt.Builder(log)
    network = _parsed(trt, builder, log, model, shape)
    config = builder.create_builder_config()
    _set_types(trt, config, precision)
    _set_limits(trt, config, options, workspace_mb)
    _set_targets(trt, builder, config, options, precision)
    profile = builder.create_optimization_profile()
    sizes = (trt.Dims((size, *shape)) for size in options.batch)
    profile.set_shape(network.get_input(0).name, *sizes)
    config.add_optimization_profile(profile)
    if timing_cache is not None:
        _set_cache(config, timing_cache)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        if out_of_memory(log.problems):
            raise _NoMemory
        raise refusal("build", log.problems)
    plan = bytes(serialized)
    layers = layers_in_log(log.table) or _inspected(trt, log, plan)
    cache = b"" if timing_cache is None else bytes(config.get_timing_cache().serialize())
    return Compiled(plan, tuple(layers), cache, tuple(notes))


def _parsed(
    trt: Any, builder: "tensorrt.Builder", log: Any, model: bytes, shape: tuple[int, int, int]
) -> "tensorrt.INetworkDefinition":
    creation, flags = trt.NetworkDefinitionCreationFlag, 0
    if strongly_typed(trt):
        flags |= 1 << int(creation.STRONGLY_TYPED)
    elif hasattr(creation, "EXPLICIT_BATCH"):
        flags |= 1 << int(creation.EXPLICIT_BATCH)
    network = builder.create_network(flags)
    parser: tensorrt.OnnxParser = trt.OnnxParser(network, log)
    if not parser.parse(model):
        found = (parser.get_error(index) for index in range(parser.num_errors))
        raise refusal("parse", [_one_line(error) for error in found] or log.problems)
    sizes = [network.get_input(0).shape[i] for i in range(len(network.get_input(0).shape))]
    if network.num_inputs != 1 or tuple(sizes[1:]) != shape:
        raise ModelError(
            f"the network takes {network.num_inputs} inputs, the first {tuple(sizes)};"
            f" expected one, (batch, {', '.join(map(str, shape))})",
            "export it again with `fr-edge export`",
        )
    return network


def _set_types(trt: Any, config: "tensorrt.IBuilderConfig", precision: str) -> None:
    """Without strong typing, flags allow what the file cannot demand."""
    if hasattr(trt.BuilderFlag, "TF32"):
        config.clear_flag(trt.BuilderFlag.TF32)  # FP32 means 24 bits, not 11
    if strongly_typed(trt):
        return
    for name, wanted in (("FP16", precision != "fp32"), ("INT8", precision == "int8")):
        if wanted:
            config.set_flag(getattr(trt.BuilderFlag, name))


def _set_limits(
    trt: Any, config: "tensorrt.IBuilderConfig", options: EngineOptions, workspace_mb: int | None
) -> None:
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if workspace_mb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mb << 20)
    if options.level is not None:
        config.builder_optimization_level = options.level
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS


def _set_cache(config: "tensorrt.IBuilderConfig", known: bytes) -> None:
    """Measurements of an earlier build; those of another GPU or version start anew."""
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def _set_targets(
    trt: Any,
    builder: "tensorrt.Builder",
    config: Any,
    options: EngineOptions,
    precision: str,
) -> None:
    if options.compute:
        if not hasattr(config, "set_compute_capability"):
            raise UsageError(
                "this TensorRT builds for the GPU it runs on, not for a named compute capability",
                "leave --compute out, or use --backend tensorrt-rtx",
            )
        config.num_compute_capabilities = len(options.compute)
        for index, text in enumerate(options.compute):
            known = [name for name in dir(trt.ComputeCapability) if name.startswith("SM")]
            name = f"SM{text.replace('.', '')}"
            if name not in known:
                raise UsageError(
                    f"this TensorRT cannot compile for compute capability {text}",
                    f"it knows {', '.join(f'{n[2:-1]}.{n[-1]}' for n in known)}",
                )
            config.set_compute_capability(getattr(trt.ComputeCapability, name), index)
    if options.dla is None:
        return
    cores = getattr(builder, "num_DLA_cores", 0)
    if options.dla >= cores:
        raise MachineError(
            f"DLA core {options.dla} was asked for; this TensorRT finds {cores} here",
            "leave --dla out; `fr-edge plan` says which boards have one",
        )
    if precision != "fp16" and hasattr(trt, "IInt8Calibrator"):
        raise UsageError(
            f"before TensorRT 11 a DLA takes no explicit Q/DQ, and no FP32: not {precision}",
            "use --fp16 with --dla",
        )
    if len(set(options.batch)) > 1:
        raise UsageError("a DLA wants one batch size", "for example --batch 1")
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = options.dla
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)


def _inspected(trt: Any, log: Any, plan: bytes) -> list[EngineLayer]:
    """The layer table from the engine itself; loading it needs the GPU that just built it."""
    engine: tensorrt.ICudaEngine | None = trt.Runtime(log).deserialize_cuda_engine(plan)
    if engine is None:
        return []
    inspector = engine.create_engine_inspector()
    return layers_in_json(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _one_line(error: "tensorrt.ParserError") -> str:
    node = f"node {error.node_name()} ({error.node_operator()}): " if error.node_name() else ""
    return f"{node}{error.desc()}"


def recorder(trt: Any) -> Any:
    """A logger that keeps problems and the layer table, and prints nothing."""

    class Recorder(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # pybind's own; super() would not reach it
            self.problems: list[str] = []
            self.table = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (self.Severity.INTERNAL_ERROR, self.Severity.ERROR):
                self.problems.append(message)
            elif ", LayerType: " in message:
                self.table = message

    return Recorder()
