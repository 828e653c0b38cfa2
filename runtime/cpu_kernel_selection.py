"""The engine for onnxruntime's CPU: INT8 layers on integer kernels where those are faster here.

An integer product is faster than the float layer, and the changes of type and layout around it cost
time: which wins depends on the layer and on the machine. As TensorRT does on a GPU, candidates are
timed side by side. The gain grows with the multiplications per number that is read or written, so
a candidate is all layers above such an intensity; all-float is a candidate too, so INT8 is never
slower than what it replaces.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from onnx import ModelProto

from ..arrays import F32
from ..errors import MachineError, ModelError
from ..faces.contract import InputSpec
from ..graph.cpu_int8 import cpu_model, integer_layers
from ..graph.frame_input import InputKind, with_input
from ..graph.layers import layer_precisions
from ..graph.load import check_finite, fixed_batch
from ..onnx_file import read_onnx
from .fingerprint import BackendBuild
from .onnxruntime_session import MAX_BATCH, make_cpu_session

logger = logging.getLogger(__name__)

TimedCall = Callable[[F32], Any]
T = TypeVar("T")

_MIN_TURNS, _MAX_TURNS = 2, 25
_RUNS_PER_TURN = 4  # the threads of the candidate before go on spinning for a while
_MAX_CUTS = 6  # candidates besides all-float
_SECONDS = 5.0  # per batch size, about


@dataclass(frozen=True)
class KernelSelection:
    """A candidate of the CPU's engine, timed.

    Attributes:
        layers: INT8 layers on integer kernels, by the name of their output.
        relative: Time relative to all-float for each batch size; below 1 where INT8 is faster.
    """

    layers: tuple[str, ...]
    relative: tuple[float, ...]


def build_cpu_engine(
    source: Path, target: Path, precision: str, spec: InputSpec, kind: InputKind = "tensor"
) -> BackendBuild:
    """Optimise a model for this CPU and write the result; for INT8 the fastest candidate.

    Args:
        source: The ONNX file.
        target: Where to write the engine.
        precision: "fp32", "fp16", "fp8" or "int8".
        spec: The network's input contract.
        kind: What the engine takes.

    Raises:
        ModelError: onnxruntime refuses the model, or its weights are not finite.
        MachineError: The engine cannot be written.
    """
    model = read_onnx(source)
    check_finite(model)
    layers = layer_precisions(model)
    fixed = fixed_batch(model)
    batches = (fixed,) if fixed else (1, MAX_BATCH)
    selections = select_kernels(model, cpu_runner, batches) if precision == "int8" else []
    integer = selections[0].layers if selections else ()
    optimised = with_input(cpu_model(model, integer if selections else None), spec, kind)
    try:
        make_cpu_session(optimised.SerializeToString(), str(source), save_optimized=target)
    except ModelError as error:
        if "serializ" not in error.message:
            raise
        raise MachineError(
            f"onnxruntime cannot write the engine to {target.parent}", "is the disk full?"
        ) from error
    facts: dict[str, Any] = {
        "input_kind": kind,
        "operators": dict(Counter(node.op_type for node in read_onnx(target).graph.node)),
    }
    if precision == "fp16":
        logger.info("onnxruntime's CPU has few FP16 kernels: weights are FP16, most sums FP32")
    if precision == "fp8":
        logger.info(
            "onnxruntime's CPU emulates FP8: every number is rounded as on a GPU, sums are float32, and"
            " it takes longer than FP32; its time says nothing about a GPU's"
        )
    if precision == "int8":
        facts["integer_layers"] = list(integer)
        facts["int8_in_float"] = layers["int8"] - len(integer)
        facts["kernel_selection"] = [
            {"int8": len(s.layers), "relative": s.relative} for s in selections
        ]
        _log_selection(selections[0], layers["int8"], batches)
    return BackendBuild(layers, len(integer), facts)


def select_kernels(
    model: ModelProto, load: Callable[[bytes], TimedCall], batches: Sequence[int]
) -> list[KernelSelection]:
    """Time the candidates; takes some seconds, and holds all of them in memory.

    Args:
        model: A model with Q and DQ.
        load: Opens a serialized model for running it.
        batches: Batch sizes to time.

    Returns:
        The candidates, the best first: its slowest batch size is the fastest.
    """
    intensities = integer_layers(model)
    cuts = _cuts(list(intensities.values()))
    if not cuts:
        return [KernelSelection((), (1.0,) * len(batches))]
    candidates = [(), *(tuple(n for n, i in intensities.items() if i >= cut) for cut in cuts)]
    runs = [load(cpu_model(model, layers).SerializeToString()) for layers in candidates]
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    random = np.random.default_rng(0)
    inputs = [random.uniform(-1, 1, (size, *shape)).astype(np.float32) for size in batches]
    times = [interleaved_min_times(runs, batch, _SECONDS) for batch in inputs]
    selections = [
        KernelSelection(layers, tuple(of_batch[i] / of_batch[0] for of_batch in times))
        for i, layers in enumerate(candidates)
    ]
    return sorted(selections, key=lambda selection: max(selection.relative))


def interleaved_min_times(
    runs: Sequence[Callable[[T], Any]], batch: T, seconds: float
) -> list[float]:
    """Time several calls side by side, in turns: a busy machine is busy for all of them.

    Args:
        runs: The calls.
        batch: What each is called with.
        seconds: Duration of all turns together, about; each call gets 2 turns of 4 runs at least.

    Returns:
        Seconds of each call's fastest run.
    """
    best = [np.inf] * len(runs)
    end = time.perf_counter() + seconds
    for turn in range(_MAX_TURNS):
        if turn >= _MIN_TURNS and time.perf_counter() > end:
            break
        for index, run in enumerate(runs):
            for _ in range(_RUNS_PER_TURN):
                start = time.perf_counter()
                run(batch)
                best[index] = min(best[index], time.perf_counter() - start)
    return best


def cpu_runner(model: bytes) -> TimedCall:
    """A function that runs an ONNX model as it is written.

    Args:
        model: The serialized model.

    Raises:
        ModelError: onnxruntime refuses it.
    """
    session = make_cpu_session(model, "a candidate of the engine")
    name = session.get_inputs()[0].name
    return lambda inputs: session.run(None, {name: inputs})


def _cuts(intensities: list[float]) -> list[float]:
    """The intensities to cut at, evenly chosen where there are many."""
    distinct = sorted(set(intensities), reverse=True)
    if len(distinct) <= _MAX_CUTS:
        return distinct
    picks = np.linspace(0, len(distinct) - 1, _MAX_CUTS).round().astype(int)
    return [distinct[i] for i in picks]


def _log_selection(best: KernelSelection, total: int, batches: Sequence[int]) -> None:
    integer = len(best.layers)
    if integer:
        times = " and ".join(f"{ratio:.2f}" for ratio in best.relative)
        logger.info(
            "%d of %d INT8 layers run on integer kernels, which was fastest here:"
            " %s of the time in float, in batches of %s",
            *(integer, total, times, " and ".join(map(str, batches))),
        )
    else:
        logger.info(
            "INT8 is not faster than float on this CPU: all %d INT8 layers run in float", total
        )
    if total > integer:
        logger.info(
            "%d INT8 layers compute in float with their INT8 weights and round no activation;"
            " --artifact graph judges the graph with every rounding, as on TensorRT",
            total - integer,
        )
