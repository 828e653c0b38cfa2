"""Results of verification and evaluation, with the shape of their JSON reports.

Fields with a default are missing in reports of earlier versions.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..._version import __version__
from ...bundle.bundle import transaction
from ...bundle.manifest import Bundle, read_manifest
from ...bundle.provenance import ImageDigests, Provenance
from ...documents import encode_json
from ...errors import BundleError, FrEdgeError, NotStored
from ...faces.sources import Faces
from ...files import real_path
from ...metrics.comparison import AccuracyChange, CurvesChange
from ...metrics.identification import IdentificationResult
from ...metrics.protocols import ListedPairs
from ...metrics.rates import CosineDrift, RateChange
from ...metrics.strata import Stratum
from ..fingerprint import machine_fingerprint
from ..session import Session
from .gallery import GalleryAdvice, GalleryMigration
from .gates import Gate, VerdictReason
from .reference import FacesSummary, ReferenceCheck

if TYPE_CHECKING:
    from .photograph_result import PhotographResult

_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_.]+")
_MAX_SLUG = 60  # characters of a protocol's name in a file name
REPORT_SCHEMA = 1  # raised when a reader of the document would have to change


@dataclass(frozen=True)
class OpenedFile:
    """The file that a session opened and that was judged.

    Attributes:
        kind: "engine", or "graph" for an ONNX file on onnxruntime.
        file: Path within the bundle.
        sha256: Of the bytes that were opened.
        execution: How a GPU computed the embeddings: "CUDA graph", "queued calls" or both; "" on the
            CPU and in reports of earlier versions.
    """

    kind: str
    file: str
    sha256: str
    execution: str = ""


@dataclass(frozen=True)
class VerifyResult:
    """What `verify` measured.

    Attributes:
        passed: Whether the verdict is PASSED.
        engine: The precision: "fp32", "fp16", "fp8" or "int8".
        verdict: "PASSED", "FAILED" or "CANNOT JUDGE"; empty in reports of earlier versions.
            PASSED without `faces` is about the golden faces alone.
        reasons: Why the verdict is not PASSED; empty when it is.
        reference: What speaks for the original network, in words.
        cosine: Cosines of engine and reference over the given faces, or the golden ones without.
        gates: Every limit with its verdict.
        golden: The golden faces' answer.
        artifact: The file that was judged.
        judged: "engine", or "graph" where the ONNX graph was judged in place of an engine.
        name: The protocol's name: "golden", or that of the faces or of the pair list.
        tar: FAR by name -> TAR of both; empty without faces of several people.
        mixed_gallery: The same with the reference's embeddings enrolled and the engine's as probes.
        strata_far: The FAR whose thresholds serve the strata.
        strata: Kinds of faces, the largest loss first.
        degraded: Copies of faces made worse on purpose.
        gallery: Whether people enrolled with the reference may stay.
        teacher: Whether people enrolled with another network may stay.
        findings: What looks wrong and its causes, in words.
        not_measured: In words.
        report: The report's path within the bundle.
    """

    passed: bool
    engine: str
    backend: str
    reference: str
    cosine: CosineDrift
    gates: tuple[Gate, ...]
    golden: ReferenceCheck
    verdict: str = ""
    reasons: tuple[VerdictReason, ...] = ()
    artifact: OpenedFile | None = None
    judged: str = ""
    name: str = ""
    tar: Mapping[str, RateChange] = field(default_factory=dict)
    mixed_gallery: Mapping[str, RateChange] = field(default_factory=dict)
    strata_far: str | None = None
    strata: tuple[Stratum, ...] = ()
    degraded: tuple[Stratum, ...] = ()
    accuracy: AccuracyChange | None = None
    curves: CurvesChange | None = None
    gallery: GalleryAdvice | None = None
    teacher: GalleryMigration | None = None
    findings: tuple[str, ...] = ()
    faces: FacesSummary | None = None
    not_measured: tuple[str, ...] = ()
    report: str = ""
    fr_edge: str = __version__
    schema: int = REPORT_SCHEMA
    device: Mapping[str, Any] = field(default_factory=dict)
    provenance: Provenance | None = None


@dataclass(frozen=True)
class PairCounts:
    """Pairs that rates are over."""

    genuine: int
    impostor: int


@dataclass(frozen=True)
class AccuracyMean:
    """Mean and standard deviation over the folds, fractions."""

    mean: float
    std: float


@dataclass(frozen=True)
class ProtocolSummary:
    """What an engine was evaluated on.

    Attributes:
        kind: In words.
        pairs: Of the pair list.
        flip: Whether the mirror image's embedding was added.
        name: Of the pair list or the folder.
    """

    kind: str
    pairs: int
    faces: int
    identities: int
    synthetic: bool
    flip: bool
    name: str = ""


@dataclass(frozen=True)
class EvaluateResult:
    """What `evaluate` measured on a pair list or a folder of people.

    Attributes:
        engine: The precision: "fp32", "fp16", "fp8" or "int8".
        accuracy: Mean over the pair list's folds, a fraction.
        accuracy_insightface: The same by insightface's convention of 400 thresholds.
        accuracy_interval_95: 95 % interval of the accuracy; None with too few people or folds.
        eer: Equal error rate.
        eer_interval_95: 95 % interval of the equal error rate; None with too few people with names.
        tar_at_far: FAR by name -> TAR over all pairs among the faces, or over the listed pairs
            where the faces have no names; None where the pairs do not resolve it.
        threshold_at_far: FAR by name -> match threshold, a cosine.
        interval_95_at_far: FAR by name -> 95 % interval of the TAR.
        pairs: How many pairs the rates are over.
        artifact: The file that was judged.
        judged: "engine", or "graph" where the ONNX graph was judged in place of an engine.
        identification: One-to-many search among people with names.
        notes: What was not measured or depends on few pairs, in words.
        not_measured: What was not measured, and why, in words.
        gates: Limits that were asked for, with their verdicts.
        verdict: "PASSED", "FAILED" or "CANNOT JUDGE"; None where no limit was asked for, unless the
            engine is not of its precision.
        passed: Whether the verdict is PASSED; None without a verdict.
        reasons: Why the verdict is not PASSED.
        report: The report's path within the bundle.
    """

    engine: str
    backend: str
    protocol: ProtocolSummary
    accuracy: float
    accuracy_std: float
    folds: int
    eer: float
    tar_at_far: Mapping[str, float | None]
    threshold_at_far: Mapping[str, float | None]
    pairs: PairCounts
    artifact: OpenedFile | None = None
    judged: str = ""
    accuracy_insightface: AccuracyMean | None = None
    accuracy_interval_95: tuple[float, float] | None = None
    eer_interval_95: tuple[float, float] | None = None
    interval_95_at_far: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    identification: IdentificationResult | None = None
    notes: tuple[str, ...] = ()
    not_measured: tuple[str, ...] = ()
    gates: tuple[Gate, ...] = ()
    verdict: str | None = None
    passed: bool | None = None
    reasons: tuple[VerdictReason, ...] = ()
    report: str = ""
    fr_edge: str = __version__
    schema: int = REPORT_SCHEMA
    provenance: Provenance | None = None


@dataclass(frozen=True)
class IjbProtocol:
    """An IJB folder; `flags` such as N1D1F1 say how images were pooled into templates."""

    kind: str
    flags: str
    images: int
    templates: int
    name: str = ""


@dataclass(frozen=True)
class IjbResult:
    """What `evaluate_ijb` measured.

    Attributes:
        engine: The precision: "fp32", "fp16", "fp8" or "int8".
        tar_at_far: FAR by name -> TAR as the published scripts read it; None where the impostor
            pairs are fewer than 1 / FAR.
        interval_95_at_far: FAR by name -> 95 % interval of TAR over people, where there is one.
        artifact: The file that was judged.
        judged: "engine", or "graph" where the ONNX graph was judged in place of an engine.
        notes: What depends on few pairs, in words.
        not_measured: What was not measured, and why, in words.
        gates: Limits that were asked for, with their verdicts.
        verdict: "PASSED", "FAILED" or "CANNOT JUDGE"; None where no limit was asked for, unless the
            engine is not of its precision.
        passed: Whether the verdict is PASSED; None without a verdict.
        reasons: Why the verdict is not PASSED.
        report: The report's path within the bundle.
    """

    engine: str
    backend: str
    protocol: IjbProtocol
    tar_at_far: Mapping[str, float | None]
    pairs: PairCounts
    interval_95_at_far: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    artifact: OpenedFile | None = None
    judged: str = ""
    notes: tuple[str, ...] = ()
    not_measured: tuple[str, ...] = ()
    gates: tuple[Gate, ...] = ()
    verdict: str | None = None
    passed: bool | None = None
    reasons: tuple[VerdictReason, ...] = ()
    report: str = ""
    fr_edge: str = __version__
    schema: int = REPORT_SCHEMA
    provenance: Provenance | None = None


def opened_file(session: Session) -> OpenedFile:
    """Which bytes a session opened, and how it has run them so far.

    Args:
        session: An open session, after its runs.
    """
    return OpenedFile(session.artifact, session.file, session.sha256, session.execution)


def protocol_name(faces: Faces | None) -> str:
    """The name of what an engine is judged on, where the user gave none.

    Args:
        faces: The source, None for the golden faces.
    """
    if faces is None:
        return "golden"
    path = Path(faces.where)
    return faces.where if faces.synthetic else path.name if path.is_dir() else path.stem


def report_name(
    stage: str,
    session: Session,
    name: str,
    faces: Faces | Sequence[str],
    pairs: ListedPairs | None,
    flags: object,
    images: ImageDigests,
) -> str:
    """The path of a report: what was judged on something else has another name.

    Args:
        stage: "verify" or "evaluate".
        session: What was judged.
        name: The protocol's name.
        faces: What it was judged on, or the golden faces' keys.
        pairs: The pair list, where there is one.
        flags: What else makes a difference; as `documents.to_builtins` takes it.
        images: Digests of the images that were judged.

    Returns:
        For example "reports/verify-int8-lfw-1a2b3c4d.json"; the digits are of a digest over all of
        it: the source's folder, the faces' pixels, names and people, the pairs, the bytes that were
        judged, the backend and the machine.
    """
    source: tuple[object, ...] = (images.sha256, faces)
    if isinstance(faces, Faces):
        where = faces.where if faces.synthetic else str(real_path(faces.where))
        source = (where, images.sha256, tuple(faces.keys), faces.labels)
    listed = (pairs.first, pairs.second, pairs.same, pairs.fold) if pairs else ()
    machine = machine_fingerprint(session.backend)
    evidence = (source, listed, flags, session.artifact, session.sha256, machine)
    digest = hashlib.sha256(encode_json(evidence, indent=0)).hexdigest()[:8]
    slug = _NOT_IN_A_NAME.sub("-", name).strip("-.")[:_MAX_SLUG] or "faces"
    return f"reports/{stage}-{session.precision}-{slug}-{digest}.json"


def save_result(
    bundle: Bundle,
    stage: str,
    result: "VerifyResult | EvaluateResult | IjbResult | PhotographResult",
    *,
    of: Iterable[str] = (),
    options: Mapping[str, Any] | None = None,
    summary: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Write a result's report into the bundle.

    Args:
        bundle: The bundle that was judged.
        stage: For the history.
        result: With `report` and `artifact`.
        of: Files of the bundle that were judged, besides the artifact.
        options: For the history, besides engine and backend.
        summary: For the history.
        files: Other files to write: path -> bytes.

    Raises:
        NotStored: The bundle cannot be written, another command keeps writing into it, or the
            artifact's bytes changed while it was judged. The result comes with it.
    """
    recorded = {"engine": result.engine, "backend": result.backend, **(options or {})}
    judged = tuple(result.provenance.files) if result.provenance else ()
    try:
        with transaction(bundle, stage, recorded) as change:
            judged += check_unchanged(bundle, result.artifact)
            for name, data in (files or {}).items():
                change.path(name, "policy").write_bytes(data)
            path = change.path(result.report, stage, of=(*judged, *of))
            path.write_bytes(encode_json(result))
            change.summary.update(summary or {})
    except (FrEdgeError, OSError) as error:
        raise NotStored(replace(result, report=""), error) from error


def check_unchanged(bundle: Bundle, artifact: OpenedFile | None) -> tuple[str, ...]:
    """Refuse to report on a file that was replaced while it was judged.

    Args:
        bundle: The bundle that was judged.
        artifact: The file that was opened.

    Returns:
        The file's name, or nothing without an artifact.

    Raises:
        BundleError: The bundle holds other bytes now.
    """
    if artifact is None:
        return ()
    entry = read_manifest(bundle.root).files.get(artifact.file)
    if entry is None or entry.sha256 != artifact.sha256:
        raise BundleError(
            f"{artifact.file} was replaced while it was judged", "run the command again"
        )
    return (artifact.file,)
