"""One engine on this board: built, verified, replayed, timed, and beside trtexec; what came out as a value."""

import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...bundle.bundle import open_bundle
from ...bundle.golden import Golden, read_golden
from ...bundle.manifest import Bundle
from ...documents import to_builtins
from ...errors import FrEdgeError, GateFailed, ModelError
from ...metrics.rates import measure_drift
from ...reading import read_file
from ..benchmark.benchmark import benchmark
from ..build import build_engine
from ..cuda.interface import on_selected_gpu
from ..evaluation.gates import CANNOT_JUDGE, FAILED, PASSED
from ..evaluation.limits import min_cosine_floor
from ..evaluation.verify import verify
from ..fingerprint import engine_name, read_fingerprint
from ..machine.device import selected_gpu, selected_index
from ..onnxruntime_session import ONNXRUNTIME
from ..session import open_session
from ..trt.builder import inspect_plan, load_library
from ..trt.config import EngineOptions, has_fp8
from ..trt.errors import recorder
from ..trt.layers import inspector_table

_REPLAY_BATCHES = (1, 8)
_REPLAY_RUNS = (
    3  # of each batch: the first is queued, the others are replays where there are graphs
)
_TIMING_S = 3.0
_WARM_UP_S = 2.0
_NOT_SENT = ("provenance", "device", "artifact", "report", "gates", "reasons")
_FACTS = (
    *("tensorrt", "tensorrt_rtx", "onnxruntime", "driver", "gpu", "compute_capability", "typing"),
    *("batch", "prelu", "prelu_ms", "reformats", "precisions", "engine_layers", "integer_kernels"),
)
"""What is sent of an engine's fingerprint; of the rest, the sha256 are of no use elsewhere."""

_PLACES = (
    "usr/src/tensorrt/bin/trtexec",
    "usr/local/tensorrt/bin/trtexec",
    "opt/tensorrt/bin/trtexec",
)
_WARM_UP_MS = 500
_TIMEOUT_S = 90

_ROW = re.compile(
    r"(?m)(?:^|\] )(H2D Latency|D2H Latency|GPU Compute Time|Latency|Enqueue Time): (min = .+)$"
)  # not TensorRT 8's "End-to-End Host Latency"
_MEDIAN = re.compile(r"median = ([0-9.]+) ms")


@dataclass(frozen=True)
class TrtexecRun:
    """One run of trtexec.

    Attributes:
        command: Its options.
        problem: Why there are no figures, "" where there are.
        median_ms: "GPU Compute Time", "Latency", "H2D Latency", "D2H Latency", "Enqueue Time" ->
            median, milliseconds, as far as this version prints them.
        compute_ratio: Our GPU time of the same plan and batch over trtexec's "GPU Compute Time".
    """

    command: tuple[str, ...]
    problem: str = ""
    median_ms: Mapping[str, float] | None = None
    compute_ratio: float | None = None


@dataclass(frozen=True)
class ReplayCheck:
    """Embeddings of runs that come again, which CUDA graphs replay, against the original network's.

    Attributes:
        replayed: Batch -> whether a CUDA graph was replayed.
        min_cosine: Lowest cosine of an embedding of any run with the original's.
    """

    replayed: Mapping[str, bool]
    min_cosine: float


@dataclass(frozen=True)
class EngineCheck:
    """One engine of one bundle.

    Attributes:
        bundle: "sample" or "yours".
        precision: "fp32", "fp16", "fp8" or "int8".
        verdict: "PASSED", "FAILED" or "CANNOT JUDGE".
        problems: Why it is not PASSED.
        build_s: Seconds that the build took.
        seconds: Of the whole check.
        size: Of the engine, bytes.
        layers: Precision -> layers with weights.
        fingerprint: How it was built, and of what layers it consists.
        cosine: `min`, `p1` and `mean` with the original network on golden faces.
        replay: Runs that come again; None where the engine did not run.
        benchmark: Figures of `fr-edge benchmark`, batch 1; None where it did not run.
        trtexec: NVIDIA's own figures; None without TensorRT.
        inspector: TensorRT's own table of the layers, as it is.
        log: What was logged meanwhile.
    """

    bundle: str
    precision: str
    verdict: str
    problems: tuple[str, ...] = ()
    build_s: float = 0.0
    seconds: float = 0.0
    size: int = 0
    layers: Mapping[str, int] = field(default_factory=dict)
    fingerprint: Mapping[str, Any] = field(default_factory=dict)
    cosine: Mapping[str, float] = field(default_factory=dict)
    replay: ReplayCheck | None = None
    benchmark: Mapping[str, Any] | None = None
    trtexec: TrtexecRun | None = None
    inspector: Any = None
    log: tuple[str, ...] = ()


def check_engine_here(root: Path, bundle: str, precision: str, backend: str) -> EngineCheck:
    """Build one engine into a bundle and try it in every way; errors become its problems.

    Args:
        root: The bundle's folder, which is changed.
        bundle: "sample" or "yours".
        precision: "fp32", "fp16", "fp8" or "int8".
        backend: "onnxruntime", "tensorrt" or "tensorrt-rtx".
    """
    start = time.monotonic()
    check = EngineCheck(bundle, precision, PASSED)
    for step in (_build, _verify, _replay, _benchmark, _beside_trtexec):
        try:
            check = step(check, root, backend)
        except (GateFailed, ModelError) as error:
            check = _with_problem(check, FAILED, error.message)
        except FrEdgeError as error:
            check = _with_problem(check, CANNOT_JUDGE, error.message)
        if not check.size:  # not built
            break
    return replace(check, seconds=time.monotonic() - start)


def fp8_lack(backend: str) -> str:
    """Why FP8 engines cannot run here; "" where they can, and on the CPU, which emulates them.

    Args:
        backend: "onnxruntime", "tensorrt", "tensorrt-rtx" or "".
    """
    gpu = None if backend == ONNXRUNTIME else selected_gpu()
    if gpu is None or has_fp8(gpu.compute):
        return ""
    return f"compute capability {gpu.compute} has no FP8"


def rebuild(root: Path, precision: str, backend: str) -> None:
    """Build an engine that an interrupted acceptance left behind unbuilt.

    Args:
        root: The bundle's folder, which is changed.
        precision: "fp32", "fp16", "fp8" or "int8".
        backend: "onnxruntime", "tensorrt" or "tensorrt-rtx".

    Raises:
        FrEdgeError: As `build_engine`.
    """
    options = None if backend == ONNXRUNTIME else EngineOptions(prelu="fastest")
    if engine_name(backend, precision) not in open_bundle(root):
        build_engine(root, precision, backend, options=options)


def _with_problem(check: EngineCheck, verdict: str, problem: str) -> EngineCheck:
    verdict = FAILED if FAILED in (verdict, check.verdict) else verdict
    # An engine that does not load fails in every step, for one reason.
    problems = tuple(dict.fromkeys([*check.problems, problem]))
    return replace(check, verdict=verdict, problems=problems)


def _build(check: EngineCheck, root: Path, backend: str) -> EngineCheck:
    start = time.monotonic()
    rebuild(root, check.precision, backend)
    bundle, name = open_bundle(root), engine_name(backend, check.precision)
    facts = read_fingerprint(bundle, name)
    check = replace(
        check,
        build_s=time.monotonic() - start,
        size=bundle.file(name).stat().st_size,
        layers=facts["layers"],
        fingerprint={key: facts[key] for key in _FACTS if key in facts},
    )
    if backend == ONNXRUNTIME:
        return check
    trt, plan = load_library(backend), read_file(bundle.file(name), "ENGINE_MB")
    with on_selected_gpu():
        text = inspect_plan(trt, recorder(trt), plan, EngineOptions())
    return replace(check, inspector=inspector_table(text))


def _verify(check: EngineCheck, root: Path, backend: str) -> EngineCheck:
    result = verify(root, check.precision, backend=backend)
    drift = result.cosine
    check = replace(check, cosine={"min": drift.min, "p1": drift.p1, "mean": drift.mean})
    for reason in result.reasons:
        check = _with_problem(check, reason.verdict, reason.reason)
    return check


def _replay(check: EngineCheck, root: Path, backend: str) -> EngineCheck:
    """Other faces in every run: a graph that computes nothing would repeat the run before."""
    bundle = open_bundle(root)
    golden = read_golden(bundle)
    replayed: dict[str, bool] = {}
    lowest = 1.0
    with open_session(bundle, check.precision, backend) as session:
        for batch in _REPLAY_BATCHES:
            for faces in _turns(golden, batch):
                embeddings = session.embed(faces.faces)
                drift = measure_drift(faces.embeddings, embeddings, faces.keys)
                lowest = min(lowest, drift.min)
            times = session.device_times(golden.faces[:batch])
            if times is not None:
                replayed[str(batch)] = times.graph
    check = replace(check, replay=ReplayCheck(replayed, lowest))
    floor = min_cosine_floor(bundle, None, check.precision)
    if lowest < floor:
        problem = f"runs that come again differ: min cosine {lowest:.4f}, at least {floor:g}"
        check = _with_problem(check, FAILED, problem)
    for batch_text in (name for name, graph in replayed.items() if not graph):
        problem = f"batch {batch_text} is not replayed as a CUDA graph: the log names the reason"
        check = _with_problem(check, CANNOT_JUDGE, problem)
    return check


def _turns(golden: Golden, batch: int) -> Iterator[Golden]:
    for run in range(_REPLAY_RUNS):
        picks = np.arange(run * batch, (run + 1) * batch) % len(golden.faces)
        yield Golden(golden.faces[picks], golden.embeddings[picks], golden.origin)


def _benchmark(check: EngineCheck, root: Path, backend: str) -> EngineCheck:
    """Batch 1. INVALID figures are sent with their reasons; they do not decide the verdict."""
    result = benchmark(
        root,
        check.precision,
        backend,
        duration_s=_TIMING_S,
        warmup_s=_WARM_UP_S,
        layers=backend != ONNXRUNTIME,
    )
    document = to_builtins(result)
    return replace(check, benchmark={k: v for k, v in document.items() if k not in _NOT_SENT})


def _beside_trtexec(check: EngineCheck, root: Path, backend: str) -> EngineCheck:
    if backend != "tensorrt" or check.benchmark is None:
        return check
    tool = find_trtexec()
    if tool is None:
        return replace(check, trtexec=TrtexecRun((), "there is no trtexec on this machine"))
    bundle: Bundle = open_bundle(root)
    plan = bundle.file(engine_name(backend, check.precision))
    breakdown = check.benchmark["runs"][0].get("breakdown_ms") or {}
    run = run_trtexec(
        tool,
        plan,
        (1, *bundle.spec.shape),
        duration_s=round(_TIMING_S),
        device=selected_index(),
        compute_ms=breakdown.get("compute"),
    )
    return replace(check, trtexec=run)


def find_trtexec(root: Path = Path("/")) -> Path | None:
    """The trtexec of this machine: on the PATH, or where NVIDIA's packages put it.

    Args:
        root: Of the file system.
    """
    if on_path := shutil.which("trtexec"):
        return Path(on_path)
    return next((root / place for place in _PLACES if (root / place).is_file()), None)


def run_trtexec(
    tool: Path,
    plan: Path,
    shape: tuple[int, ...],
    *,
    duration_s: int,
    device: int,
    compute_ms: float | None,
) -> TrtexecRun:
    """Let trtexec time a plan.

    Only options that TensorRT 8.6 to 11 all have are used. Before TensorRT 11 trtexec's Latency
    includes the copies, later it does not; GPU Compute Time is the same in all.

    Args:
        tool: trtexec.
        plan: The serialized engine, with one input `face`.
        shape: Of the input, with the batch.
        duration_s: Of the timing, seconds.
        device: Number of the GPU.
        compute_ms: Our median GPU time of the same run; None where it was not measured.
    """
    options = (
        f"--loadEngine={plan}",
        f"--shapes=face:{'x'.join(map(str, shape))}",
        f"--duration={duration_s}",
        f"--warmUp={_WARM_UP_MS}",
        f"--device={device}",
    )
    kept = options[1:]
    try:
        done = subprocess.run(
            [tool, *options], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        return TrtexecRun(kept, f"trtexec did not run: {error}")
    medians = parse_trtexec(done.stdout)
    if done.returncode or "GPU Compute Time" not in medians:
        lines = (done.stdout + done.stderr).strip().splitlines()
        errors = [line for line in lines if "[E]" in line] or lines[-3:]
        text = " ".join(errors)[:600]
        return TrtexecRun(kept, f"trtexec ended with {done.returncode}: {text}")
    theirs = medians["GPU Compute Time"]
    ratio = compute_ms / theirs if compute_ms is not None and theirs > 0 else None
    return TrtexecRun(kept, "", medians, ratio)


def parse_trtexec(text: str) -> dict[str, float]:
    """The medians of trtexec's performance summary, milliseconds.

    Args:
        text: What it printed; lines such as "GPU Compute Time: min = 0.7 ms, ..., median = 0.8 ms".
    """
    rows = ((name, _MEDIAN.search(figures)) for name, figures in _ROW.findall(text))
    return {name: float(median[1]) for name, median in rows if median}
