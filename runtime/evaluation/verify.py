"""`verify`: is the engine on this machine still the network that was trained?

Two steps, so that no torch is needed here. The golden faces check that `model.onnx` is the original
network; then reference and engine embed the user's faces, and their cosines, rates and thresholds
are compared. Gates turn that into a verdict.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...bundle.bundle import open_bundle
from ...bundle.golden import Golden, read_golden
from ...bundle.manifest import Bundle
from ...bundle.provenance import ImageDigests, digest_images, with_digests
from ...errors import FacesError, UsageError
from ...faces.face_numbers import reported_names
from ...faces.pairs import Pairs, read_groups
from ...faces.quality import DEGRADATIONS, STRATA, degraded, faces_for
from ...faces.sources import Faces, spread_picks
from ...files import sha256
from ...metrics.comparison import VerificationComparison, compare_verification
from ...metrics.rates import CosineDrift, measure_drift
from ...metrics.strata import compare_degraded
from ...progress import Track, silent
from ..machine.device import describe_device
from ..onnxruntime_session import ONNXRUNTIME
from ..session import Artifact, Session, open_session, session_provenance
from .doubts import Doubts, forced_contract, people_doubts, reference_doubt
from .error_analysis import explain_all, strata_doubts
from .gallery import compare_gallery, gallery_advice
from .gates import CANNOT_JUDGE, FAILED, PASSED, gate_reasons, overall_verdict
from .judgement import (
    arithmetic_notes,
    judge_gates,
    judged_rate,
    precision_reasons,
    stratum_gate,
)
from .limits import POLICY_NAME, Limits, kept_policy, merged_policy, with_policy_signatures
from .reference import (
    PairedEmbeddings,
    ReferenceCheck,
    check_reference,
    embed_both,
    summarize_faces,
)
from .result import (
    VerifyResult,
    opened_file,
    protocol_name,
    report_name,
    save_result,
)

_SAMPLE = 64  # faces that are looked at for the cause of a failure
_DEGRADED = 512  # faces that are copied and made worse


def verify(
    bundle: Bundle | str | Path,
    engine: str = "int8",
    *,
    backend: str = "auto",
    artifact: Artifact = "engine",
    faces: Faces | None = None,
    pairs: Pairs | None = None,
    reference: Path | None = None,
    teacher: Path | None = None,
    policy: Path | None = None,
    groups: Path | None = None,
    degrade: bool = False,
    keep_names: bool = False,
    name: str = "",
    track: Track = silent,
    **limits: float | None,
) -> VerifyResult:
    """Compare an engine with the original network and write `reports/verify-PRECISION-PROTOCOL.json`.

    A failed gate does not raise: look at `verdict`. It is CANNOT JUDGE where the faces or the
    reference prove nothing. Limits left None come from `policy`, else from the bundle's policy,
    else from the defaults. Runs on other faces, pairs, limits, backends or
    artifacts have reports of their own.

    Args:
        bundle: An open bundle or its folder.
        engine: The precision: "fp32", "fp16", "fp8" or "int8".
        backend: As `open_session`.
        artifact: "engine" judges the engine that was built, exactly; "graph" the ONNX graph on
            onnxruntime with every rounding that its Q/DQ nodes ask for.
        faces: Faces of people to judge on; without faces the golden ones are compared.
        pairs: A pair list to judge on, which brings its own faces.
        reference: The original network's embeddings of those faces, a file of `fr-edge embed
            --backend torch`; by default model.onnx in FP32 speaks for the original.
        teacher: Another network's embeddings of those faces: can its enrolled gallery be kept?
        policy: A TOML file with limits, which the bundle keeps.
        groups: A CSV file `path,group` that adds groups of faces to the kinds.
        degrade: Whether to judge copies of some faces too, made small, blurred, noisy and dark.
        keep_names: Whether the report may name faces as their source does; by default it has
            numbers that only this user can turn back.
        name: The protocol's name in the report; by default that of the faces.
        track: Shows progress.
        limits: What the engine must satisfy, by the names of `Limits`: `min_cosine=0.96`.

    Returns:
        What was measured, with the verdict.

    Raises:
        UsageError: Impossible limits or options.
        DataError: The policy cannot be read.
        BundleError: The engine was not built, or a file was changed.
        MachineError: The backend cannot run here.
        FacesError: The faces cannot be used.
        ModelError: An embedding is zero or not finite.
    """
    asked = Limits(**limits)
    bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    bundle = with_policy_signatures(bundle, policy)
    faces = pairs.faces if pairs is not None else faces
    images = ImageDigests()
    if faces is not None:
        faces, images = with_digests(faces_for(faces, bundle.spec))
    _check_sources(faces, pairs, reference, teacher)
    with (
        open_session(bundle, engine, backend, artifact=artifact) as session,
        open_session(bundle, "fp32", ONNXRUNTIME, artifact="graph") as fp32,
    ):
        claims = precision_reasons(bundle, session)
        gated = merged_policy(asked, bundle, policy, session.precision)
        sides = _Sides(bundle, read_golden(bundle), fp32, session, track, keep_names)
        if faces is None:
            images = digest_images(sides.golden.faces)
        golden = check_reference(sides.golden, fp32, session, bundle.spec.crop_side)
        measured = _Measured(golden.original, golden.engine)
        if faces is not None:
            masks = read_groups(groups, faces.keys) if groups else None
            measured = _measure(sides, faces, pairs, golden, reference, gated, masks)
            if degrade:
                measured = _measure_degraded(sides, faces, measured)
        gates, not_measured = judge_gates(
            gated, session.precision, golden, measured.drift, measured.comparison
        )
        doubts = _doubts(sides, faces, measured, gated)
        findings = [*doubts.findings]
        reasons = [*gate_reasons(gates), *claims, *doubts.reasons]
        verdict = overall_verdict(reason.verdict for reason in reasons)
        if verdict == FAILED:
            findings += _causes(sides, faces, measured)
    comparison, embeddings = measured.comparison, measured.embeddings
    migration, in_doubt = None, any(doubt.verdict == CANNOT_JUDGE for doubt in doubts.reasons)
    if teacher is not None and faces is not None and embeddings is not None:
        migration = compare_gallery(teacher, faces, embeddings.engine, gated, in_doubt)
    name = name or protocol_name(faces)
    flags = {"degrade": degrade, "limits": gated, "files": _digests(reference, teacher, groups)}
    result = VerifyResult(
        passed=verdict == PASSED,
        verdict=verdict,
        reasons=tuple(reasons),
        engine=session.precision,
        backend=session.backend,
        artifact=opened_file(session),
        judged=session.artifact,
        reference=measured.reference,
        name=name,
        cosine=measured.drift,
        gates=tuple(gates),
        golden=golden,
        teacher=migration,
        findings=tuple(findings),
        faces=summarize_faces(faces, pairs),
        not_measured=(*not_measured, *doubts.not_measured, *arithmetic_notes(session)),
        report=report_name(
            "verify",
            session,
            name,
            sides.golden.keys if faces is None else faces,
            pairs,
            flags,
            images,
        ),
        device=asdict(describe_device()),
        provenance=session_provenance(
            bundle,
            session,
            images=images,
            pairs=pairs,
            list_sha256=pairs.sha256 if pairs else "",
            reads={"reference": reference, "teacher": teacher, "groups": groups},
            also=("golden.npz", POLICY_NAME),
            instead={POLICY_NAME: policy},
        ),
    )
    if comparison is not None:
        result = replace(
            result,
            tar=comparison.tar,
            mixed_gallery=comparison.mixed_gallery,
            strata_far=comparison.strata_far,
            strata=comparison.strata,
            degraded=comparison.degraded,
            accuracy=comparison.accuracy,
            curves=comparison.curves,
            gallery=gallery_advice(gated, comparison.mixed_gallery, cannot_judge=in_doubt),
        )
    save_result(
        bundle,
        "verify",
        result,
        of=("model.onnx", "golden.npz"),
        summary={"passed": result.passed, "verdict": verdict, "min_cosine": result.cosine.min},
        files=kept_policy(policy),
    )
    return result


@dataclass(frozen=True)
class _Sides:
    bundle: Bundle
    golden: Golden
    reference: Session
    engine: Session
    track: Track
    keep_names: bool


@dataclass(frozen=True)
class _Measured:
    """What speaks for the original, how far the engine is from it, and the rates of both; and what
    the report calls the faces."""

    reference: str
    drift: CosineDrift
    comparison: VerificationComparison | None = None
    embeddings: PairedEmbeddings | None = None
    names: Sequence[str] = ()


def _check_sources(
    faces: Faces | None, pairs: Pairs | None, reference: Path | None, teacher: Path | None
) -> None:
    if faces is None:
        if reference is not None or teacher is not None:
            raise UsageError("embeddings in a file need the faces they are of", "add --faces SRC")
        return
    if teacher is not None and not faces.labelled:
        raise UsageError(
            f"a gallery needs to know who is who, which {faces.where} does not say",
            "give faces in a folder per person",
        )
    several = int((np.bincount(faces.labels) > 1).sum())
    if pairs is None and faces.labelled and (faces.identities < 2 or not several):
        raise FacesError(
            f"{faces.where} has {len(faces)} faces of {faces.identities} people, {several} of them "
            "with two faces or more; expected several people, one of them twice",
            "give a folder per person, or leave the faces out to compare the golden ones alone",
        )


def _measure(
    sides: _Sides,
    faces: Faces,
    pairs: Pairs | None,
    golden: ReferenceCheck,
    file: Path | None,
    limits: Limits,
    groups: Mapping[str, npt.NDArray[np.bool_]] | None,
) -> _Measured:
    names = reported_names(faces, keep_names=sides.keep_names)
    both = embed_both(sides.bundle, faces, sides.reference, sides.engine, file, sides.track)
    comparison = compare_verification(
        both.reference,
        both.engine,
        np.asarray(faces.labels, np.int64) if faces.labelled else None,
        pairs,
        dict(zip(STRATA.values(), both.quality.T, strict=True)),
        limits.judged_far,
        groups,
        eer_interval=limits.max_eer is not None,
    )
    words = f"model.onnx in FP32 on this machine, which is {golden.original} on golden faces"
    return _Measured(
        words if file is None else f"embeddings from {file.name}",
        measure_drift(both.reference, both.engine, names),
        comparison,
        both,
        names,
    )


def _measure_degraded(sides: _Sides, faces: Faces, measured: _Measured) -> _Measured:
    """Both networks on copies made worse, of many people before many faces of each."""
    comparison, both = measured.comparison, measured.embeddings
    if comparison is None or both is None or not faces.labelled:
        return measured
    picks = spread_picks(faces, _DEGRADED)
    labels = np.asarray(faces.labels, np.int64)
    strata = []
    for kind in DEGRADATIONS:
        copies = degraded(faces, picks, kind)
        worse = embed_both(sides.bundle, copies, sides.reference, sides.engine, None, sides.track)
        before, after = (both.reference, both.engine), (worse.reference, worse.engine)
        rate = comparison.strata_rate
        strata.append(compare_degraded(kind, before, after, picks, labels, rate))
    return replace(measured, comparison=replace(comparison, degraded=tuple(strata)))


def _doubts(sides: _Sides, faces: Faces | None, measured: _Measured, limits: Limits) -> Doubts:
    """What in the reference, the faces and their labels decides the verdict, and what only looks
    wrong."""
    reasons = [forced_contract(sides.bundle)]
    findings: list[str] = []
    comparison, people = measured.comparison, Doubts()
    if comparison is not None:
        reasons.append(reference_doubt(limits, comparison))
        text, stratum = strata_doubts(comparison.strata, measured.drift)
        if stratum is not None:
            gate = stratum_gate(limits, stratum)
            reasons += [replace(r, reason=f"{text}; {r.reason}") for r in gate_reasons([gate])]
            findings += [text] if gate.passed else []
    if faces is not None and measured.embeddings is not None:
        far = limits.judged_far if comparison is None else judged_rate(limits, comparison.tar).far
        people = people_doubts(
            sides.bundle,
            sides.reference,
            measured.embeddings.reference,
            faces,
            measured.names,
            far,
        )
    return Doubts(
        (*filter(None, reasons), *people.reasons),
        (*findings, *people.findings),
        people.not_measured,
    )


def _causes(sides: _Sides, faces: Faces | None, measured: _Measured) -> list[str]:
    """What is wrong with which network, by the golden faces and the first of the given ones."""
    golden, spec = sides.golden, sides.bundle.spec
    suspects = {
        "the original network": golden.embeddings,
        f"the {sides.engine.artifact}": sides.engine.embed(golden.faces),
    }
    causes = explain_all(suspects, golden.faces, sides.reference, spec)
    if faces is not None and measured.embeddings is not None:
        sample = next(faces.batches(_SAMPLE))
        suspects = {"the reference embeddings": measured.embeddings.reference[: len(sample)]}
        causes += explain_all(suspects, sample, sides.reference, spec)
    return causes


def _digests(*files: Path | None) -> list[str | None]:
    return [None if file is None else sha256(file) for file in files]
