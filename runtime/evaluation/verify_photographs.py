"""`verify --photos`: is the whole chain on this machine, from a photograph to a decision, still right?

The host's chain is FP32 throughout: detector.onnx, alignment as `norm_crop`, model.onnx. The device's is
what an application runs. Replacing one step after the other shows what each costs.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from ...arrays import F32, I64, U8
from ...bundle.bundle import open_bundle
from ...bundle.manifest import Bundle
from ...bundle.provenance import ImageDigests
from ...calibration.detector_calibration import template_points
from ...errors import FacesError
from ...faces.align import align
from ...faces.contract import ALIGNED_SIZE
from ...faces.face_numbers import reported_names
from ...faces.photographs import (
    NOT_A_FACE,
    UNREADABLE,
    PhotographFaces,
    Photographs,
    find_faces,
)
from ...faces.sources import Faces
from ...faces.stored_detector import DETECTOR, DETECTOR_SPEC
from ...metrics.comparison import VerificationComparison, compare_verification
from ...metrics.detection import DetectionDrift, PhotographDetections, compare_detections
from ...metrics.score_intervals import Z_975
from ...metrics.verification import cosines
from ...progress import Track, silent
from ..detector_engine import BundleDetector, open_bundle_detector
from ..fingerprint import DETECTOR_SOURCES
from ..frames import check_frame, unit_length
from ..machine.device import describe_device
from ..onnxruntime_session import ONNXRUNTIME
from ..session import Artifact, Session, open_session, session_provenance
from .doubts import Doubts, forced_contract, people_doubts, reference_doubt
from .embeddings_file import check_embeddings
from .gates import (
    CANNOT_JUDGE,
    PASSED,
    Gate,
    VerdictReason,
    ceiling_gate,
    gate_reasons,
    overall_verdict,
)
from .judgement import arithmetic_notes, judged_rate, precision_reasons, rate_gates
from .limits import POLICY_NAME, Limits, kept_policy, merged_policy, with_policy_signatures
from .photograph_result import (
    ALIGNMENT,
    DETECTION,
    NETWORK,
    ChainStep,
    PhotographCounts,
    PhotographResult,
    rates_with_missed,
    summarize_photographs,
)
from .result import OpenedFile, opened_file, report_name, save_result

_BATCH = 32  # photographs whose faces are embedded at once

_OF_FACES = ("min_cosine", "p1_cosine", "max_stratum_drop", "min_accuracy", "max_eer")  # limits

_NO_FACES = "the FP32 detector finds no face in these photographs"
_MORE_FACES = "give more photographs that show a face"


def verify_photographs(
    bundle: Bundle | str | Path,
    photographs: Photographs,
    engine: str = "int8",
    *,
    detector: str = "auto",
    backend: str = "auto",
    artifact: Artifact = "engine",
    policy: Path | None = None,
    name: str = "",
    track: Track = silent,
    **limits: float | None,
) -> PhotographResult:
    """Compare the chain on this machine with the host's in FP32; write `reports/verify-photos-*.json`.

    Of several faces the largest is meant. A failed gate does not raise: look at `verdict`.

    Args:
        bundle: An open bundle with a detector, or its folder.
        photographs: Whole photographs, a folder per person.
        engine: The face network's precision, as `open_session` takes it.
        detector: The detector's precision, as `open_bundle_detector` takes it.
        backend: As `open_session`; of both.
        artifact: "engine" judges the engines that were built; "graph" the ONNX graphs with every
            rounding, on onnxruntime.
        policy: A TOML file with limits, which the bundle keeps.
        name: The protocol's name in the report; by default that of the folder.
        track: Shows progress.
        limits: What the chain must satisfy, by the names of `Limits`.

    Returns:
        What was measured, with the verdict.

    Raises:
        UsageError: Impossible limits or options.
        DataError: The policy cannot be read.
        BundleError: The bundle has no detector, an engine was not built, or a file was changed.
        MachineError: The backend cannot run here.
        FacesError: No photograph shows a face that both detectors find.
        ModelError: An embedding is zero or not finite.
    """
    asked = Limits(**limits)
    bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    bundle = with_policy_signatures(bundle, policy)
    with (
        open_bundle_detector(bundle, "fp32", artifact="graph") as host,
        open_bundle_detector(bundle, detector, backend, artifact=artifact) as device,
        open_session(bundle, "fp32", ONNXRUNTIME, artifact="graph") as fp32,
        open_session(bundle, engine, backend, artifact=artifact) as session,
    ):
        claims = precision_reasons(bundle, session) + precision_reasons(bundle, device)
        gated = merged_policy(asked, bundle, policy, session.precision)
        before, after = (
            find_faces(photographs, detect, "largest", _labelled(track, label), check=check_frame)
            for detect, label in ((host, "detecting: FP32"), (device, "detecting: device"))
        )
        drift = compare_detections(_all_faces(before), _all_faces(after), template_points())
        both = np.intersect1d(before.found, after.found).astype(np.int64)
        if not len(both):
            raise FacesError(
                f"none of {len(photographs)} photographs shows a face that both detectors find:"
                f" the FP32 detector finds one in {len(before.found)}, the device's in"
                f" {len(after.found)}",
                "are they photographs, upright, with faces of some 30 pixels or more?",
            )
        images = ImageDigests()
        chain = _embed_chain(bundle, photographs, before, after, both, fp32, session, images, track)
        labels = photographs.labels[chain.kept] if photographs.labelled else None
        whole = _compare(chain.steps[0][1], chain.steps[-1][1], labels, gated)
        doubts = _doubts(bundle, fp32, photographs, before, chain, whole, gated)
        note = [*arithmetic_notes(session), *_detector_notes(device)]
        judged, opened = opened_file(session), _detector_file(device)
        name = name or photographs.root.resolve().name
        flags = {"limits": gated, "photographs": True, "detector": (device.sha256, device.backend)}
        keys = [photographs.keys[index] for index in chain.kept]
        report = report_name("verify-photos", session, name, keys, None, flags, images)
        provenance = session_provenance(
            bundle,
            session,
            images=images,
            also=(
                DETECTOR,
                DETECTOR_SPEC,
                DETECTOR_SOURCES[device.precision],
                device.file,
                POLICY_NAME,
            ),
            instead={POLICY_NAME: policy},
        )
    gates, not_measured = _gates(gated, drift, whole)
    reasons = [*claims, *gate_reasons(gates), *doubts.reasons]
    verdict = overall_verdict(reason.verdict for reason in reasons)
    counts = _counts(before, after, chain.kept)
    result = PhotographResult(
        passed=verdict == PASSED,
        verdict=verdict,
        engine=session.precision,
        backend=session.backend,
        judged=session.artifact,
        artifact=judged,
        detector=opened,
        detector_engine=device.precision,
        family=device.spec.family,
        input_kind=session.input_kind,
        name=name,
        reference="detector.onnx and model.onnx in FP32 on this machine, aligned on the host",
        detection=drift,
        photographs=counts,
        faces=summarize_photographs(photographs.root, labels),
        min_cosine=float(cosines(chain.steps[0][1], chain.steps[-1][1]).min()),
        tar=whole.tar if whole else {},
        tar_with_missed=rates_with_missed(whole, photographs.labels, before.found, chain.kept),
        steps=tuple(_steps(chain, labels, gated)),
        gates=tuple(gates),
        reasons=tuple(reasons),
        findings=doubts.findings,
        not_measured=(*not_measured, *doubts.not_measured, *note),
        report=report,
        device=asdict(describe_device()),
        provenance=provenance,
    )
    save_result(
        bundle,
        "verify",
        result,
        of=(DETECTOR, DETECTOR_SPEC, device.file),
        options={"photographs": True, "detector": device.precision},
        summary={"passed": result.passed, "verdict": verdict},
        files=kept_policy(policy),
    )
    return result


@dataclass(frozen=True)
class _Chain:
    """Embeddings of the photographs `kept`, of unit length, after each step; the host's chain first."""

    kept: I64
    steps: tuple[tuple[str, F32], ...]


def _labelled(track: Track, label: str) -> Track:
    return lambda items, _, total: track(items, label, total)


def _all_faces(found: PhotographFaces) -> list[PhotographDetections]:
    return [
        PhotographDetections(
            np.array([face.box for face in faces], np.float32).reshape(-1, 4),
            np.array([face.points for face in faces], np.float32).reshape(-1, 5, 2),
        )
        for faces in found.faces
    ]


def _embed_chain(
    bundle: Bundle,
    photographs: Photographs,
    before: PhotographFaces,
    after: PhotographFaces,
    both: I64,
    fp32: Session,
    session: Session,
    images: ImageDigests,
    track: Track,
) -> _Chain:
    """Each photograph is decoded once."""
    side, in_engine = bundle.spec.crop_side, session.input_kind == "frame"
    rows: dict[str, list[F32]] = {name: [] for name in ("", DETECTION, NETWORK, ALIGNMENT)}
    steps = -(-len(both) // _BATCH)
    starts = range(0, len(both), _BATCH)
    for start in track(starts, "embedding", steps):
        crops: list[tuple[F32, F32]] = []
        for index in map(int, both[start : start + _BATCH]):
            image = photographs.read(index)
            points = (before.points[index], after.points[index])
            images.add(index, align(image, points[0], size=ALIGNED_SIZE))
            crops.append(tuple(align(image, p, size=side) for p in points))  # type: ignore[arg-type]
            if in_engine:
                rows[ALIGNMENT].append(session.embed_frame(image, points[1][None]))
        if crops:
            host, device = (np.stack(faces) for faces in zip(*crops, strict=True))
            rows[""].append(fp32.embed(host))
            rows[DETECTION].append(fp32.embed(device))
            rows[NETWORK].append(session.embed(device))
    names = [photographs.keys[index] for index in both]
    parts = []
    for name, embeddings in rows.items():
        if not embeddings:
            continue
        joined = np.concatenate(embeddings)
        check_embeddings(joined, names, fp32.file if name in ("", DETECTION) else session.file)
        parts.append((name, unit_length(joined)))
    return _Chain(both, tuple(parts))


def _compare(
    before: F32, after: F32, labels: I64 | None, limits: Limits
) -> VerificationComparison | None:
    if labels is None or not (np.bincount(labels) > 1).any():
        return None
    return compare_verification(before, after, labels, None, {}, limits.judged_far)


def _doubts(
    bundle: Bundle,
    fp32: Session,
    photographs: Photographs,
    before: PhotographFaces,
    chain: _Chain,
    whole: VerificationComparison | None,
    limits: Limits,
) -> Doubts:
    """Whether the people can judge, by the faces that the host's chain embeds."""
    if whole is None:
        reason = "the photographs do not show several people of whom one has two"
        return Doubts((VerdictReason(CANNOT_JUDGE, reason, "give a folder per person"),))
    side, far = bundle.spec.crop_side, judged_rate(limits, whole.tar).far

    def aligned(index: int) -> U8:
        kept = int(chain.kept[index])
        return align(photographs.read(kept), before.points[kept], size=side)

    keys = [photographs.keys[index] for index in chain.kept]
    labels = np.unique(photographs.labels[chain.kept], return_inverse=True)[1].astype(np.int64)
    faces = Faces(str(photographs.root), keys, labels, aligned, side=side)
    names = reported_names(faces, keep_names=False)
    doubts = people_doubts(bundle, fp32, chain.steps[0][1], faces, names, far)
    decisive = (forced_contract(bundle), reference_doubt(limits, whole))
    return replace(doubts, reasons=(*filter(None, decisive), *doubts.reasons))


def _steps(chain: _Chain, labels: I64 | None, limits: Limits) -> list[ChainStep]:
    steps = []
    for (_, before), (name, after) in zip(chain.steps, chain.steps[1:], strict=False):
        comparison = _compare(before, after, labels, limits)
        same = cosines(before, after)
        steps.append(
            ChainStep(
                name, float(same.mean()), float(same.min()), comparison.tar if comparison else {}
            )
        )
    return steps


def _gates(
    limits: Limits, drift: DetectionDrift, comparison: VerificationComparison | None
) -> tuple[list[Gate], list[str]]:
    reason = "" if drift.faces else _NO_FACES
    gates = [
        ceiling_gate(
            "faces missed by the device's detector",
            drift.missed_share,
            limits.detector_recall_loss,
            reason,
            drift.missed_interval_95,
            _needed(limits.detector_recall_loss),
        ),
        ceiling_gate(
            "median shift of the landmarks, pixels of the aligned face",
            drift.shift.median if drift.shift else None,
            limits.landmark_shift,
            "" if drift.shift else _NO_FACES,
            cure=_MORE_FACES,
        ),
    ]
    others = [
        f"{name}: `fr-edge verify --faces` judges it"
        for name in _OF_FACES
        if getattr(limits, name) is not None
    ]
    if comparison is None:
        return gates, ["TAR and FAR: no photographs of several known people", *others]
    rate = judged_rate(limits, comparison.tar)
    gates += rate_gates(limits, rate, named=True)
    return gates, [*comparison.notes, *others]


def _needed(limit: float) -> str:
    """How many photographs show that a share of missed faces is below a limit, if none is missed."""
    if limit <= 0:
        return "no number of photographs shows a share of 0: raise the limit"
    return f"give {math.ceil(Z_975**2 * (1 - limit) / limit)} photographs or more that show a face"


def _detector_notes(detector: BundleDetector) -> list[str]:
    if detector.backend != ONNXRUNTIME or not detector.int8_in_float:
        return []
    return [
        f"INT8 rounding in {detector.int8_in_float} of {detector.int8_layers} INT8 layers of the"
        " detector, which compute in float on this CPU; --artifact graph judges every rounding"
    ]


def _counts(
    before: PhotographFaces, after: PhotographFaces, kept: Sequence[int] | I64
) -> PhotographCounts:
    return PhotographCounts(
        len(before.states),
        len(before.found),
        len(after.found),
        len(np.setdiff1d(before.found, after.found)),
        before.states.count(UNREADABLE) + before.states.count(NOT_A_FACE),
        len(kept),
    )


def _detector_file(detector: BundleDetector) -> OpenedFile:
    return OpenedFile(detector.artifact, detector.file, detector.sha256)
