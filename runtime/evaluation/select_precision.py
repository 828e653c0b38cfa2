"""Choose the precision by measurement: build each, verify it, time it, keep the fastest that passes.

INT8 is not always faster: depthwise convolutions and reformats may cost more than they save.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...bundle.bundle import open_bundle, transaction
from ...bundle.golden import read_golden
from ...bundle.keys import SigningKey
from ...bundle.manifest import Bundle
from ...documents import to_builtins
from ...errors import FrEdgeError, GateFailed, MachineError
from ...faces.contract import preprocess
from ...faces.pairs import Pairs
from ...faces.sources import Faces
from ...interruption import keeping
from ...progress import Track, silent
from ..build import build_engine
from ..cpu_kernel_selection import interleaved_min_times
from ..fingerprint import PRECISIONS, SOURCES, engine_name
from ..machine.backends import pick_backend
from ..onnxruntime_session import ONNXRUNTIME
from ..session import open_session
from ..trt.config import EngineOptions
from .verify import verify


@dataclass(frozen=True)
class PrecisionCandidate:
    """One precision that was tried.

    Attributes:
        precision: "fp32", "fp16", "fp8" or "int8".
        problem: Why it was not built or did not pass; empty for one that did.
        min_cosine: Lowest cosine with the original; None where it was not built.
        min_ms: Fastest run of one batch, timed in turns with the others; None where it did not pass.
    """

    precision: str
    problem: str
    min_cosine: float | None = None
    min_ms: float | None = None


@dataclass(frozen=True)
class PrecisionChoice:
    """The candidates, and the precision whose engine was kept.

    Attributes:
        batch: Faces in a timed run.
        chosen: "fp32", "fp16", "fp8" or "int8".
        engine: The engine's path within the bundle.
    """

    backend: str
    batch: int
    chosen: str
    engine: str
    candidates: tuple[PrecisionCandidate, ...]


def select_precision(
    bundle: Bundle | str | Path,
    backend: str = "auto",
    faces: Faces | None = None,
    pairs: Pairs | None = None,
    *,
    batch: int = 1,
    duration_s: float = 5.0,
    options: EngineOptions | None = None,
    track: Track = silent,
    sign: SigningKey | None = None,
) -> PrecisionChoice:
    """Keep the fastest of the fp32, fp16, fp8 and int8 engines that passes `verify`.

    FP8 is tried where the bundle is calibrated for it and the backend is not onnxruntime's CPU; a GPU
    or TensorRT without FP8 is that candidate's problem.

    The others' engines of this backend are removed, so `--engine auto` means the chosen one. Of
    TensorRT's two forms of PReLU each engine has the faster one; its fingerprint names it.

    Args:
        bundle: An open bundle or its folder.
        backend: As `build_engine`.
        faces: Calibrate if need be, and judge with `pairs` or alone; without either the golden faces
            judge.
        pairs: A pair list to judge on.
        batch: Faces in a timed run.
        duration_s: Timing per candidate, seconds.
        options: TensorRT's.
        track: Shows progress.
        sign: As `build_engine`.

    Raises:
        GateFailed: No precision passes; what was built stays.
        MachineError: The backend cannot run here.
    """
    chosen_backend = pick_backend(backend)
    if chosen_backend != ONNXRUNTIME:
        options = replace(options or EngineOptions(), prelu="fastest")
    root = bundle.root if isinstance(bundle, Bundle) else Path(bundle)
    candidates: list[PrecisionCandidate] = []
    with keeping(lambda: _kept_text(root, chosen_backend, candidates)):
        tried = _precisions(root, chosen_backend)
        for name in track(tried, "building and verifying", len(tried)):
            candidates.append(
                _build_and_verify(root, name, chosen_backend, faces, pairs, options, sign)
            )
    passing = [candidate.precision for candidate in candidates if not candidate.problem]
    if not passing:
        problems = "; ".join(f"{c.precision}: {c.problem}" for c in candidates)
        raise GateFailed(
            f"no precision passes: {problems}", "`fr-edge verify` shows each in detail"
        )
    times = time_engines(root, passing, chosen_backend, batch, duration_s)
    winner = min(times, key=lambda name: times[name])
    result = PrecisionChoice(
        chosen_backend,
        batch,
        winner,
        engine_name(chosen_backend, winner),
        tuple(replace(c, min_ms=times.get(c.precision)) for c in candidates),
    )
    recorded = {"precision": "auto", "backend": chosen_backend}
    with transaction(root, "build-engine", recorded) as change:
        for name in tried:
            if name != winner:
                change.remove(engine_name(chosen_backend, name))
        change.summary.update(to_builtins(result))
    return result


def _kept_text(root: Path, backend: str, candidates: Sequence[PrecisionCandidate]) -> str:
    """What an interruption leaves, in words; engines are built again, TensorRT's in less time."""
    if not candidates:
        return ""
    timings = "" if backend == ONNXRUNTIME else ", with TensorRT's kernel timings"
    built = ", ".join(candidate.precision for candidate in candidates)
    return f"the engines built so far ({built}) are in {root}{timings}; they are built again"


def _precisions(root: Path, backend: str) -> tuple[str, ...]:
    fp8 = backend != ONNXRUNTIME and SOURCES["fp8"] in open_bundle(root, check="manifest")
    return tuple(name for name in PRECISIONS if name != "fp8" or fp8)


def _build_and_verify(
    root: Path,
    precision: str,
    backend: str,
    faces: Faces | None,
    pairs: Pairs | None,
    options: EngineOptions | None,
    sign: SigningKey | None,
) -> PrecisionCandidate:
    try:
        build_engine(root, precision, backend, faces, options=options, sign=sign)
        verified = verify(root, precision, backend=backend, faces=faces, pairs=pairs)
    except MachineError as error:
        if precision != "fp8":
            raise  # the next precision would meet it too
        return PrecisionCandidate(precision, error.message)
    except FrEdgeError as error:
        return PrecisionCandidate(precision, error.message)
    failed = "; ".join(f"{reason.verdict}: {reason.reason}" for reason in verified.reasons)
    return PrecisionCandidate(precision, failed, verified.cosine.min)


def time_engines(
    root: Path, precisions: Sequence[str], backend: str, batch: int, duration_s: float
) -> dict[str, float]:
    """Time a bundle's engines side by side, in turns.

    Args:
        root: The bundle's folder.
        precisions: Of the engines, which were built.
        backend: "onnxruntime", "tensorrt" or "tensorrt-rtx".
        batch: Faces in a run.
        duration_s: Timing per engine, seconds.

    Returns:
        Precision -> milliseconds of its fastest run.
    """
    bundle = open_bundle(root)
    sessions = [open_session(bundle, name, backend) for name in precisions]
    faces = read_golden(bundle).faces
    images = np.resize(faces, (batch, *faces.shape[1:]))
    total_s = duration_s * len(sessions)
    if any(session.uint8_input for session in sessions):
        seconds = interleaved_min_times([s.embed for s in sessions], images, total_s)
    else:
        inputs = preprocess(images, bundle.spec)
        seconds = interleaved_min_times([s.embed_tensor for s in sessions], inputs, total_s)
    return {name: 1e3 * value for name, value in zip(precisions, seconds, strict=True)}
