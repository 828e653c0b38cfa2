"""`verify`: is the engine on this machine still the network that was trained?

Two steps, so that no torch is needed here. Golden faces prove that `model.onnx` equals the original
network; then reference and engine embed the user's faces, and their cosines, rates and thresholds
are compared. Gates turn that into a verdict.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import __version__
from ..bundle import Bundle, change, open_bundle
from ..errors import UsageError
from ..faces.pairs import Pairs
from ..faces.sources import Faces
from ..progress import Track, silent
from .cpu import NAME as CPU
from .cpu import CpuSession
from .device import describe_device
from .drift import Drift, measure_drift
from .gates import DEFAULTS, MAX_TAR_DROP, PROOF, Gate, Limits
from .metrics import FARS, all_pairs, far_name, listed_pairs, pair_accuracy
from .reference import Proof, embed_both, prove
from .separation import Rate, compare_rates, curves, few_impostors
from .session import open_session


@dataclass(frozen=True)
class Separation:
    """How both tell labelled faces apart: `rates` by FAR, `curves` for the report, `shaky` why the
    gate's FAR hangs on too few pairs; `accuracy` (reference, engine) with a pair list."""

    rates: tuple[Rate, ...]
    curves: dict[str, Any]
    shaky: str
    accuracy: tuple[float, float] | None


@dataclass(frozen=True)
class Verified:
    """What `verify` found; `drift` is over the given faces, or the golden ones without any."""

    engine: str
    backend: str
    reference: str
    proof: Proof
    drift: Drift
    faces: dict[str, Any] | None
    separation: Separation | None
    gates: tuple[Gate, ...]
    not_measured: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return all(gate.passed for gate in self.gates)

    def to_json(self) -> dict[str, Any]:
        told = self.separation
        return {
            "passed": self.passed,
            "engine": self.engine,
            "backend": self.backend,
            "reference": self.reference,
            "cosine": self.drift.to_json(),
            "worst": [{"face": key, "cosine": cosine} for key, cosine in self.drift.worst],
            "tar": {far_name(r.far): r.to_json() for r in told.rates} if told else {},
            "accuracy": dict(zip(("reference", "engine"), told.accuracy, strict=True))
            if told and told.accuracy
            else None,
            "gates": [gate.to_json() for gate in self.gates],
            "golden": {
                "original": self.proof.origin,
                "fp32_min_cosine": round(self.proof.fp32, 6),
                "engine": self.proof.engine.to_json(),
            },
            "faces": self.faces,
            "curves": told.curves if told else None,
            "not_measured": list(self.not_measured),
            "fr_edge": __version__,
            "device": describe_device().to_json(),
        }


def verify(
    bundle: Bundle | str | Path,
    engine: str = "int8",
    *,
    backend: str = "auto",
    faces: Faces | None = None,
    pairs: Pairs | None = None,
    reference: Path | None = None,
    min_cosine: float | None = None,
    p1_cosine: float | None = None,
    max_tar_drop: float | None = None,
    far: float = 1e-4,
    track: Track = silent,
) -> Verified:
    """Compare an engine with the original network and write `reports/verify-ENGINE.json`.

    `pairs` brings its own faces. `reference` is a file of `fr-edge embed --backend torch` over the
    same faces; without it the FP32 ONNX model, proven on the golden faces, speaks for the original.
    Limits left None take the default of the engine's precision; the default TAR gate is left out,
    and said to be, where the pairs are too few. A failed gate does not raise: look at `passed`.

    Raises UsageError for impossible limits, BundleError, MachineError and FacesError as the parts
    do, ModelError when an embedding is zero or not finite.
    """
    limits = Limits(min_cosine, p1_cosine, max_tar_drop, far)
    bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    faces = pairs.faces if pairs is not None else faces
    if reference is not None and faces is None:
        raise UsageError("reference embeddings need the faces they are of", "add --faces SRC")
    session = open_session(bundle, engine, backend)
    fp32 = CpuSession(bundle.file("model.onnx"), "fp32")
    proof = prove(bundle, fp32, session)
    who, drift, separation = proof.origin, proof.engine, None
    if faces is not None:
        old, new = embed_both(bundle, faces, fp32, session, reference, track)
        drift = measure_drift(old, new, faces.keys)
        separation = _separate(old, new, faces, pairs, far)
        who = f"model.onnx in FP32 on this machine, proven to be {who} on golden faces"
        if reference is not None:
            who = f"embeddings from {reference.name}"
    gates, missing = _judge(limits, session.precision, proof, drift, separation)
    if session.backend == CPU:
        missing.append("TensorRT's arithmetic: this ran on onnxruntime's CPU")
    found = Verified(
        session.precision,
        session.backend,
        who,
        proof,
        drift,
        _about(faces),
        separation,
        tuple(gates),
        tuple(missing),
    )
    options = {"engine": session.precision, "backend": session.backend}
    with change(bundle.root, "verify", options) as draft:
        draft.drop("report.html")
        path = draft.path(f"reports/verify-{session.precision}.json", "verification")
        path.write_text(json.dumps(found.to_json(), indent=1) + "\n", encoding="utf-8")
        draft.summary.update(passed=found.passed, min_cosine=round(drift.min, 6))
    return found


def _separate(
    old: npt.NDArray[np.float32],
    new: npt.NDArray[np.float32],
    faces: Faces,
    pairs: Pairs | None,
    far: float,
) -> Separation | None:
    if faces.labelled and faces.identities > 1:
        before, after = all_pairs(old, faces.labels), all_pairs(new, faces.labels)
    elif pairs is not None:
        before, after = listed_pairs(old, pairs), listed_pairs(new, pairs)
    else:
        return None
    accuracy = None
    if pairs is not None:
        accuracy = pair_accuracy(old, pairs).mean, pair_accuracy(new, pairs).mean
    return Separation(
        tuple(compare_rates(before, after, (*FARS, far))),
        {"reference": curves(before), "engine": curves(after)},
        few_impostors(before, far),
        accuracy,
    )


def _judge(
    limits: Limits, precision: str, proof: Proof, drift: Drift, told: Separation | None
) -> tuple[list[Gate], list[str]]:
    """The gates, and what was left unmeasured."""
    minimum, p1 = DEFAULTS[precision]
    gates = [
        Gate("fp32 model is the original: min cosine", proof.fp32, PROOF),
        Gate("min cosine", drift.min, minimum if limits.min_cosine is None else limits.min_cosine),
        Gate("p1 cosine", drift.p1, p1 if limits.p1_cosine is None else limits.p1_cosine),
    ]
    rate = next((r for r in told.rates if r.far == limits.far), None) if told else None
    why = rate.why if rate else "no labelled faces of several people were given"
    shaky = told.shaky if told else ""
    name = f"TAR drop at FAR {far_name(limits.far)}"
    if limits.max_tar_drop is not None or (not why and not shaky):
        drop = -rate.delta if rate and rate.delta is not None else None
        limit = MAX_TAR_DROP if limits.max_tar_drop is None else limits.max_tar_drop
        gates.append(Gate(name, drop, limit, most=True, why=why))
    missing = [f"{name}: {why}"] if why else [f"{name} is shaky: {shaky}"] if shaky else []
    if told is None or told.accuracy is None:
        missing.append("10-fold accuracy: no pair list was given")
    return gates, missing


def _about(faces: Faces | None) -> dict[str, Any] | None:
    if faces is None:
        return None
    return {
        "where": Path(faces.where).name if not faces.drawn else faces.where,
        "count": len(faces),
        "identities": faces.identities,
        "drawn": faces.drawn,
    }
