"""The right precision by measurement: build each, prove it, time it, keep the fastest that holds.

INT8 is not always faster: depthwise convolutions and reformats may cost more than they save.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...bundle.bundle import open_bundle, transaction
from ...bundle.golden import read_golden
from ...bundle.manifest import Bundle
from ...errors import FrEdgeError, GateFailed, MachineError
from ...faces.pairs import Pairs
from ...faces.sources import Faces
from ...progress import Track, silent
from ..build import build_engine
from ..fingerprint import PRECISIONS, engine_name
from ..machine.backends import pick_backend
from ..session import Session, open_session
from ..trt.config import EngineOptions
from .verify import verify


@dataclass(frozen=True)
class PrecisionCandidate:
    """One precision. `problem` says why it was not built or did not hold, "" for one that did.

    `min_cosine` is against the original, `p50_ms` the median latency of one batch; None where it
    did not come so far.
    """

    precision: str
    problem: str
    min_cosine: float | None = None
    p50_ms: float | None = None


@dataclass(frozen=True)
class PrecisionChoice:
    """`chosen` is the precision whose engine was kept."""

    backend: str
    batch: int
    chosen: str
    candidates: tuple[PrecisionCandidate, ...]

    def to_json(self) -> dict[str, Any]:
        rows = [vars(c) for c in self.candidates]
        return {**vars(self), "engine": engine_name(self.backend, self.chosen), "candidates": rows}


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
) -> PrecisionChoice:
    """Keep the fastest of the fp32, fp16 and int8 engines that passes `verify`'s default gates.

    `faces` calibrate if need be, and judge with `pairs` or alone; without either the golden faces
    judge. The others' engines of this backend leave the bundle, so `--engine auto` means the
    chosen one. Raises GateFailed when none holds (what was built then stays, to be looked at),
    MachineError when the backend cannot run here.
    """
    chosen_backend = pick_backend(backend)
    root = bundle.root if isinstance(bundle, Bundle) else Path(bundle)
    found: dict[str, PrecisionCandidate] = {}
    for precision in track(PRECISIONS, "building and proving", len(PRECISIONS)):
        found[precision] = _prove(root, precision, chosen_backend, faces, pairs, options)
    holding = [name for name, candidate in found.items() if not candidate.problem]
    if not holding:
        said = "; ".join(f"{c.precision}: {c.problem}" for c in found.values())
        raise GateFailed(f"no precision holds: {said}", "`fr-edge verify` shows each in detail")
    opened = open_bundle(root, check="manifest")
    sessions: dict[str, Session] = {
        name: open_session(opened, name, chosen_backend) for name in holding
    }
    golden = read_golden(opened).faces
    inputs = np.resize(golden, (batch, *golden.shape[1:]))
    medians = _race(sessions, inputs, duration_s)
    winner = min(medians, key=lambda name: medians[name])
    candidates = tuple(
        PrecisionCandidate(c.precision, c.problem, c.min_cosine, medians.get(name))
        for name, c in found.items()
    )
    result = PrecisionChoice(chosen_backend, batch, winner, candidates)
    with transaction(
        root, "build-engine", {"precision": "auto", "backend": chosen_backend}
    ) as draft:
        for name in PRECISIONS:
            if name != winner:
                draft.remove(engine_name(chosen_backend, name))
        draft.summary.update(result.to_json())
    return result


def _prove(
    root: Path,
    precision: str,
    backend: str,
    faces: Faces | None,
    pairs: Pairs | None,
    options: EngineOptions | None,
) -> PrecisionCandidate:
    try:
        build_engine(root, precision, backend, faces, options=options)
        verified = verify(root, precision, backend=backend, faces=faces, pairs=pairs)
    except MachineError:
        raise  # the next precision would meet it too
    except FrEdgeError as error:
        return PrecisionCandidate(precision, error.message)
    failed = [f"{g.name} {g.value}, limit {g.limit}" for g in verified.gates if not g.passed]
    drift = verified.drift
    return PrecisionCandidate(precision, "; ".join(failed), drift.min)


def _race(
    sessions: dict[str, Session], inputs: npt.NDArray[np.uint8], duration_s: float
) -> dict[str, float]:
    """Median milliseconds of each, in turns, so that a busy machine is busy for all of them."""
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for session in sessions.values():
        for _ in range(3):
            session.embed(inputs)
    end = time.perf_counter() + duration_s * len(sessions)
    while time.perf_counter() < end or len(next(iter(times.values()))) < 5:
        for name, session in sessions.items():
            start = time.perf_counter()
            session.embed(inputs)
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: float(np.median(values)) for name, values in times.items()}
