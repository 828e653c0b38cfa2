"""`verify`: is the engine on this machine still the network that was trained?

Two steps, so that no torch is needed here. Golden faces prove that `model.onnx` equals the original
network; then reference and engine embed the user's faces, and their cosines, rates and thresholds
are compared. Gates turn that into a verdict.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...bundle.bundle import open_bundle, transaction
from ...bundle.golden import read_golden
from ...bundle.manifest import Bundle
from ...errors import FacesError, UsageError
from ...faces.pairs import Pairs, read_groups
from ...faces.quality import DEGRADATIONS, STRATA, degraded
from ...faces.sources import Faces, spread_picks
from ...metrics.comparison import compare_verification
from ...metrics.rates import RateChange, measure_drift
from ...metrics.strata import Stratum, compare_degraded
from ...progress import Track, silent
from ..onnxruntime_session import ONNXRUNTIME as CPU
from ..session import Artifact, Session, open_session
from .error_analysis import explain_all, kind_doubts, label_doubts
from .gallery import match_gallery
from .gates import FAR, POLICY_NAME, Limits, judge_gates, mixed_advice, read_policy
from .reference import PairedEmbeddings, embed_both, prove
from .result import VerifyResult

_SAMPLE = 64

_WORSENED = 512


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
    min_cosine: float | None = None,
    p1_cosine: float | None = None,
    max_tar_drop: float | None = None,
    max_stratum_drop: float | None = None,
    far: float | None = None,
    policy: Path | None = None,
    groups: Path | None = None,
    degrade: bool = False,
    track: Track = silent,
) -> VerifyResult:
    """Compare an engine with the original network and write `reports/verify-ENGINE.json`.

    `pairs` brings its own faces. `reference` is a file of `fr-edge embed --backend torch` over the
    same faces; without it the FP32 ONNX model, proven on the golden faces, speaks for the original.
    `teacher` is such a file by another network, whose gallery the engine shall match: it judges
    nothing, it tells if people enrolled with the teacher may stay. Limits left None come from
    `policy`, a TOML file that the bundle then keeps, else from the bundle's, else from the
    defaults. `groups` is a CSV `path,group` that adds strata; `degrade`
    tries copies of some faces too, made small, blurred, noisy and dark. A failed gate does not
    raise: look at `passed`.

    Raises UsageError for impossible limits, DataError for a policy that is none, BundleError,
    MachineError and FacesError as the parts do, ModelError when an embedding is zero or not finite.
    """
    asked = Limits(min_cosine, p1_cosine, max_tar_drop, max_stratum_drop, far)
    bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    faces = pairs.faces if pairs is not None else faces
    if faces is None and (reference is not None or teacher is not None):
        raise UsageError("embeddings in a file need the faces they are of", "add --faces SRC")
    if teacher is not None and faces is not None and not faces.labelled:
        raise UsageError(
            f"a gallery needs to know who is who, which {faces.where} does not say",
            "give faces in a folder per person",
        )
    if faces is not None and pairs is None:
        _need_people(faces)
    session = open_session(bundle, engine, backend, artifact=artifact)
    limits = asked.over(_policy(bundle, policy, session.precision))
    fp32 = open_session(bundle, "fp32", CPU, artifact="graph")
    proof = prove(bundle, fp32, session)
    who, drift, separation, both = proof.origin, proof.engine, None, None
    findings, gallery = [], None
    if faces is not None:
        both = embed_both(bundle, faces, fp32, session, reference, track)
        drift = measure_drift(both.reference, both.engine, faces.keys)
        separation = compare_verification(
            both.reference,
            both.engine,
            np.asarray(faces.labels, np.int64) if faces.labelled else None,
            pairs,
            dict(zip(STRATA.values(), both.quality.T, strict=True)),
            limits.far or FAR,
            read_groups(groups, faces.keys) if groups else None,
        )
        if degrade and separation is not None and faces.labelled:
            worsened = _worsen(bundle, faces, fp32, session, both, separation.strata_rate, track)
            separation = replace(separation, degraded=worsened)
        who = f"model.onnx in FP32 on this machine, proven to be {who} on golden faces"
        if reference is not None:
            who = f"embeddings from {reference.name}"
        if separation is not None and (odd := kind_doubts(separation.strata, drift)):
            findings.append(odd)
        if teacher is not None:
            gallery = match_gallery(teacher, faces, both.engine, limits)
        if faces.labelled and (doubt := label_doubts(both.reference, faces.labels, faces.keys)):
            findings.append(doubt)
    gates, missing = judge_gates(limits, session.precision, proof, drift, separation)
    if not all(gate.passed for gate in gates):
        findings += _causes(bundle, fp32, session, faces, both)
    if session.backend == CPU:
        missing.append("TensorRT's arithmetic: this ran on onnxruntime's CPU")
        if session.int8_in_float:
            missing.append(
                f"{session.int8_in_float} of {session.int8_layers} INT8 layers compute in float on"
                " this CPU; judge the graph with --artifact graph for TensorRT-like rounding"
            )
    found = VerifyResult(
        session.precision,
        session.backend,
        who,
        proof,
        drift,
        _about(faces),
        separation,
        mixed_advice(limits, tuple(separation.mixed_gallery.values()) if separation else ()),
        gallery,
        tuple(gates),
        tuple(findings),
        tuple(missing),
    )
    options = {"engine": session.precision, "backend": session.backend}
    with transaction(bundle.root, "verify", options) as draft:
        if policy is not None:
            draft.path(POLICY_NAME, "policy").write_bytes(policy.read_bytes())
        path = draft.path(f"reports/verify-{session.precision}.json", "verification")
        path.write_text(json.dumps(found.to_json(), indent=1) + "\n", encoding="utf-8")
        draft.summary.update(passed=found.passed, min_cosine=round(drift.min, 6))
    return found


def _need_people(faces: Faces) -> None:
    several = int((np.bincount(faces.labels) > 1).sum())
    if faces.labelled and (faces.identities < 2 or not several):
        raise FacesError(
            f"{faces.where} has {len(faces)} faces of {faces.identities} people, {several} of them "
            "with two faces or more; expected several people, one of them twice",
            "give a folder per person, or leave the faces out to compare the golden ones alone",
        )


def _worsen(
    bundle: Bundle,
    faces: Faces,
    fp32: Session,
    session: Session,
    both: PairedEmbeddings,
    rate: RateChange | None,
    track: Track,
) -> tuple[Stratum, ...]:
    """Both networks on worsened copies, of many people before many faces."""
    picks = spread_picks(faces, _WORSENED)
    labels = np.asarray(faces.labels, np.int64)
    found = []
    for kind in DEGRADATIONS:
        copies = embed_both(bundle, degraded(faces, picks, kind), fp32, session, None, track)
        clean, worse = (both.reference, both.engine), (copies.reference, copies.engine)
        found.append(compare_degraded(kind, clean, worse, picks, labels, rate))
    return tuple(found)


def _causes(
    bundle: Bundle,
    fp32: Session,
    session: Session,
    faces: Faces | None,
    both: PairedEmbeddings | None,
) -> list[str]:
    """What is wrong with whom, found on the golden faces and on the first of the given ones."""
    golden = read_golden(bundle)
    engine = session.embed(golden.faces)
    suspects = {"the original network": golden.embeddings, "the engine": engine}
    found = explain_all(suspects, golden.faces, fp32, bundle.spec)
    if faces is not None and both is not None:
        sample = next(faces.batches(_SAMPLE))
        suspects = {"the reference embeddings": both.reference[: len(sample)]}
        found += explain_all(suspects, sample, fp32, bundle.spec)
    return found


def _policy(bundle: Bundle, policy: Path | None, precision: str) -> Limits:
    if policy is not None:
        return read_policy(policy, precision)
    return read_policy(bundle.file(POLICY_NAME), precision) if POLICY_NAME in bundle else Limits()


def _about(faces: Faces | None) -> dict[str, Any] | None:
    if faces is None:
        return None
    return {
        "where": faces.where if faces.synthetic else Path(faces.where).name,
        "count": len(faces),
        "identities": faces.identities,
        "drawn": faces.synthetic,
    }
