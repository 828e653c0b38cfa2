"""The one place where onnxruntime sessions are made; onnxruntime is imported on the first call."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import ModelError

# Casts FP16 weights to FP32 ahead of the runs, and crashes the process (onnxruntime 1.32) on a network
# with a Transpose, a MatMul with weights and a Reshape in a row, as in torch's MultiheadAttention.
_CRASHING = "FuseFp16InitializerToFp32NodeTransformer"

_FATAL = 4  # log severity: errors are raised as exceptions, stderr belongs to the command line


def make_session(
    model: bytes | str | Path,
    *,
    name: str = "the network",
    threads: int | None = None,
    providers: Sequence[tuple[str, Mapping[str, Any]]] = (("CPUExecutionProvider", {}),),
    memory_pattern: bool = True,
    optimize: bool = True,
    save_optimized: Path | None = None,
    profile: Path | None = None,
    config: Mapping[str, str] | None = None,
) -> Any:
    """Make an onnxruntime session.

    Args:
        model: A serialized ONNX model, or the path of one (its side files are then found).
        name: What error messages call the model, for example its path.
        threads: Threads per operator; None lets onnxruntime take all physical cores.
        providers: Execution providers with their options, in order of preference; unavailable ones
            are skipped.
        memory_pattern: Whether onnxruntime plans one block of memory for a whole run: faster,
            but it holds far more memory when many inner tensors are outputs.
        optimize: Whether onnxruntime rewrites the graph; False for a graph it has saved optimized.
        save_optimized: Where to write the optimized graph, if anywhere.
        profile: Prefix of the trace file to write while running, if any.
        config: Session configuration entries, for example `session.x64quantprecision`.

    Returns:
        The `onnxruntime.InferenceSession`.

    Raises:
        ModelError: onnxruntime does not load the model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    options.enable_mem_pattern = memory_pattern
    if threads is not None:
        options.intra_op_num_threads = threads
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if save_optimized is not None:
        options.optimized_model_filepath = str(save_optimized)
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    options.add_session_config_entry("optimization.disable_specified_optimizers", _CRASHING)
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    available = onnxruntime.get_available_providers()
    try:
        return onnxruntime.InferenceSession(
            str(model) if isinstance(model, Path) else model,
            options,
            providers=[(name, dict(own)) for name, own in providers if name in available],
        )
    except Exception as error:  # onnxruntime's exception classes share no base of their own
        raise ModelError(f"{name} cannot be loaded by onnxruntime: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """Give the first line of an exception's message.

    Args:
        error: The exception.

    Returns:
        The line, or the name of the exception's class where the message is empty.
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
