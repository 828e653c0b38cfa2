"""How a TensorRT engine is to be built, and the builder configuration that says so.

Options that this TensorRT does not have are refused by name; which it has is found by attribute.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ...errors import MachineError, UsageError
from ...graph.frame_input import InputKind

PreluForm = Literal["split", "native", "fastest"]
FrameSize = tuple[int, int]  # height and width in pixels

# NVIDIA's support matrix: FP8 tensor cores in Ada (8.9) and later; TensorRT-RTX 1.7 refuses 8.6.
MIN_FP8_COMPUTE = (8, 9)

if TYPE_CHECKING:
    import tensorrt


@dataclass(frozen=True)
class EngineOptions:
    """Build options of TensorRT.

    Attributes:
        batch: Smallest, typical and largest number of faces per run.
        workspace_mb: Memory for the build; None for what TensorRT wants.
        level: TensorRT's optimisation level, 0 to 5; None for its default.
        dla: Run on this DLA core.
        version_compatible: The engine loads in later TensorRT versions too.
        hardware_compatible: The engine runs on later GPUs too.
        compute: Compute capabilities to compile for ("8.6"), where the library can.
        input_kind: What the engine takes: "tensor", "crop" or "frame".
        frame: Smallest, typical and largest frame of a frame engine: height and width in pixels.
        implicit: TensorRT 8 or 10 places INT8 itself, by the bundle's calibration.cache.
        prelu: PReLU as relu(x) - a relu(-x) ("split"), as it is ("native"), or what is faster of
            the two on this GPU ("fastest"). A DLA has PReLU itself, and implicit INT8 would need a
            range for each step of it: both always get it as it is.
    """

    batch: tuple[int, int, int] = (1, 8, 32)
    workspace_mb: int | None = None
    level: int | None = None
    dla: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    compute: tuple[str, ...] = ()
    input_kind: InputKind = "tensor"
    frame: tuple[FrameSize, FrameSize, FrameSize] = ((112, 112), (1080, 1920), (2160, 3840))
    implicit: bool = False
    prelu: PreluForm = "split"

    def __post_init__(self) -> None:
        smallest, typical, largest = self.batch
        if not 1 <= smallest <= typical <= largest:
            raise UsageError(
                f"batches are 1 or more, in the order smallest, typical, largest;"
                f" found {self.batch}",
                "for example --batch 1,8,32",
            )
        for sizes in zip(*self.frame, strict=True):
            if not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
                raise UsageError(
                    "frames are 1 pixel or more a side, in the order smallest, typical, largest;"
                    f" found {self.frame}",
                    "for example --frame-size 112x112,1080x1920,2160x3840",
                )
        if self.workspace_mb is not None and self.workspace_mb < 1:
            raise UsageError(f"the workspace is 1 MB or more, found {self.workspace_mb}")
        if self.level is not None and not 0 <= self.level <= 5:
            raise UsageError(f"the optimisation level is 0 to 5, found {self.level}")


def strongly_typed(trt: Any, options: EngineOptions) -> bool:
    """Whether the network takes its types from the ONNX file: TensorRT 10 and later.

    For a DLA, and for implicit quantisation, flags are used as long as the library has them.

    Args:
        trt: The module `tensorrt` or `tensorrt_rtx`.
        options: How the engine is built.
    """
    if (options.dla is not None or options.implicit) and hasattr(trt.BuilderFlag, "FP16"):
        return False
    return hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


def require_fp8(trt: Any, options: EngineOptions, compute: str) -> None:
    """Raise where FP8 cannot be built.

    Args:
        trt: The module `tensorrt` or `tensorrt_rtx`.
        options: How the engine is built.
        compute: The GPU's compute capability, such as "8.7"; "" where the engine is not built for
            the GPU of this machine.

    Raises:
        UsageError: Options that FP8 does not go with.
        MachineError: This TensorRT or the GPU has no FP8.
    """
    if options.implicit or options.dla is not None:
        raise UsageError(
            "FP8 comes from the Q and DQ of the file and runs on the GPU",
            "leave --implicit and --dla out, or build --int8",
        )
    if not strongly_typed(trt, options) or not hasattr(trt.DataType, "FP8"):
        raise MachineError(
            f"TensorRT {trt.__version__} takes no FP8 network",
            "FP8 needs TensorRT 10.3 and later; build --int8 or --fp16",
        )
    for capability in filter(None, (compute, *options.compute)):
        if not has_fp8(capability):
            raise MachineError(
                f"compute capability {capability} has no FP8: Ada (8.9), Hopper, Blackwell and Thor"
                " have it",
                "build --int8 or --fp16; `fr-edge targets` lists what a board takes",
            )


def has_fp8(compute: str) -> bool:
    """Whether the tensor cores of a GPU multiply FP8: from Ada on.

    Args:
        compute: Compute capability, such as "8.9".
    """
    numbers = tuple(int(part) if part.isdigit() else 0 for part in compute.split("."))
    return numbers >= MIN_FP8_COMPUTE


def configure(
    trt: Any,
    builder: "tensorrt.Builder",
    config: "tensorrt.IBuilderConfig",
    options: EngineOptions,
    precision: str,
    workspace_mb: int | None,
) -> None:
    """Put options into a builder's configuration.

    Args:
        trt: The module `tensorrt` or `tensorrt_rtx`.
        builder: The builder.
        config: Its configuration, which is changed.
        options: How the engine is built.
        precision: "fp32", "fp16", "fp8" or "int8".
        workspace_mb: Memory for this build, which may be less than the options'.

    Raises:
        UsageError: An option that this TensorRT does not have.
        MachineError: A DLA core that does not exist here.
    """
    _set_types(trt, config, precision, strongly_typed(trt, options))
    _set_limits(trt, config, options, workspace_mb)
    if options.compute:
        _set_compute(trt, config, options.compute)
    if options.dla is not None:
        _set_dla(trt, builder, config, options, options.dla, precision)


def set_timing_cache(config: "tensorrt.IBuilderConfig", timings: bytes) -> None:
    """Reuse the kernel timings of an earlier build; those of another GPU or version are dropped.

    Args:
        config: The builder's configuration, which is changed.
        timings: Serialized timings, b"" to begin anew.
    """
    cache = config.create_timing_cache(timings)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def _set_types(trt: Any, config: "tensorrt.IBuilderConfig", precision: str, strong: bool) -> None:
    """Without strong typing, flags allow what the file cannot demand."""
    if hasattr(trt.BuilderFlag, "TF32"):
        config.clear_flag(trt.BuilderFlag.TF32)  # FP32 means 24 bits, not 11
    if strong:
        return
    for name, wanted in (("FP16", precision != "fp32"), ("INT8", precision == "int8")):
        if wanted:
            config.set_flag(getattr(trt.BuilderFlag, name))


def _share_profile(trt: Any, config: "tensorrt.IBuilderConfig") -> None:
    """In TensorRT 8.6 a profile serves several contexts only if that is asked for; later always."""
    feature = getattr(getattr(trt, "PreviewFeature", None), "PROFILE_SHARING_0806", None)
    if feature is not None:
        config.set_preview_feature(feature, True)


def _set_limits(
    trt: Any, config: "tensorrt.IBuilderConfig", options: EngineOptions, workspace_mb: int | None
) -> None:
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    _share_profile(trt, config)
    if workspace_mb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mb << 20)
    if options.level is not None:
        config.builder_optimization_level = options.level
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS


def _set_compute(trt: Any, config: Any, wanted: tuple[str, ...]) -> None:
    if not hasattr(config, "set_compute_capability"):
        raise UsageError(
            "this TensorRT builds for the GPU it runs on, not for a named compute capability",
            "leave --compute out, or use --backend tensorrt-rtx",
        )
    known = {f"{n[2:-1]}.{n[-1]}": n for n in dir(trt.ComputeCapability) if n.startswith("SM")}
    config.num_compute_capabilities = len(wanted)
    for index, text in enumerate(wanted):
        if text not in known:
            raise UsageError(
                f"this TensorRT cannot compile for compute capability {text}",
                f"expected one of {', '.join(sorted(known, key=float))}",
            )
        config.set_compute_capability(getattr(trt.ComputeCapability, known[text]), index)


def _set_dla(
    trt: Any,
    builder: "tensorrt.Builder",
    config: "tensorrt.IBuilderConfig",
    options: EngineOptions,
    core: int,
    precision: str,
) -> None:
    cores = getattr(builder, "num_DLA_cores", 0)
    if core >= cores:
        raise MachineError(
            f"DLA core {core} was asked for; this TensorRT finds {cores} here",
            "leave --dla out; `fr-edge targets` lists the boards that have one",
        )
    if precision != "fp16" and not options.implicit and hasattr(trt, "IInt8Calibrator"):
        raise UsageError(
            f"before TensorRT 11 a DLA runs FP16 or implicit INT8, not {precision} as in the file",
            "use --fp16 with --dla, or --int8 --implicit",
        )
    if len(set(options.batch)) > 1:
        raise UsageError("a DLA needs one batch size", "for example --batch 1,1,1")
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
