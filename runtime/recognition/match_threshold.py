"""The match threshold of an open engine, from the certificates that `verify` has written about it."""

from dataclasses import dataclass

from ...bundle.bundle import open_bundle
from ...bundle.manifest import Bundle
from ...bundle.trust import (
    ensure_signatures,
    signature_required,
    vouched_for,
    with_required_signatures,
)
from ...errors import BundleError
from ...metrics.verification import far_name
from ..evaluation.gates import PASSED
from ..evaluation.judgement import judged_rate
from ..evaluation.limits import Limits
from ..evaluation.result import VerifyResult
from ..evaluation.stored_reports import read_reports
from ..session import Session


@dataclass(frozen=True)
class MatchThreshold:
    """The cosine from which two faces are one person's, from a certificate.

    Attributes:
        value: The cosine.
        far: The false accept rate at which it was found.
        report: The report's path within the bundle.
        synthetic: Whether it was found on synthetic faces, which are no people.
    """

    value: float
    far: float
    report: str
    synthetic: bool


def find_certificates(bundle: Bundle, session: Session) -> list[VerifyResult]:
    """The reports of `verify` about exactly the bytes that are open, and still valid.

    Args:
        bundle: An open bundle. Where it is restricted to signed files, or this machine is, reports
            that no trusted key has signed do not count.
        session: Its open engine.

    Raises:
        DataError: A report is damaged.
        BundleError, MachineError: Signatures are required and cannot be checked.
    """
    now = open_bundle(bundle.root)  # with reports of a moment ago too
    now = ensure_signatures(now) if bundle.signed is None else with_required_signatures(now)
    return [
        stored.report
        for stored in read_reports(now)
        if (now.signed is None or vouched_for(now, stored.file))
        and isinstance(stored.report, VerifyResult)
        and not stored.stale
        and stored.report.artifact is not None
        and stored.report.artifact.sha256 == session.sha256
        and stored.report.backend == session.backend
    ]


def find_threshold(bundle: Bundle, session: Session, far: float | None) -> MatchThreshold:
    """The match threshold of an engine.

    Args:
        bundle: An open bundle.
        session: Its open engine.
        far: The false accept rate; None for 1e-4, else 1e-3, as far as the pairs show them.

    Raises:
        BundleError: There is no certificate, or its pairs do not show this rate.
        DataError: A report is damaged.
    """
    what = f"the {session.precision} {session.artifact} on {session.backend}"
    certify = (
        f"certify it: `fr-edge verify {bundle.root} --engine {engine_option(session)} --faces SRC`"
    )
    reports = find_certificates(bundle, session)
    if not reports:
        required = bundle.signed is not None or signature_required()
        signed = " and signed by a trusted key" if required else ""
        raise BundleError(
            f"no report of `verify` is about {what}{signed}: no threshold",
            f"{certify}{' --sign KEY' if signed else ''}",
        )
    passed = [report for report in reports if report.verdict == PASSED]
    if not passed:
        verdicts = ", ".join(sorted({report.verdict or "FAILED" for report in reports}))
        raise BundleError(
            f"`verify` did not pass {what} ({verdicts}): no threshold",
            f"`fr-edge report {bundle.root}` shows why",
        )
    thresholds, reasons = [], []
    for report in passed:
        wanted, name = Limits(far=far), far_name(Limits(far=far).judged_far)
        if name not in report.tar:
            reasons.append(f"{report.report} has no pairs at FAR {name}")
            continue
        rate = judged_rate(wanted, report.tar)
        value, why = rate.threshold.engine, rate.reason or rate.low_confidence
        if value is None or why:
            reasons.append(f"{report.report}: {why or 'it has no threshold'}")
            continue
        on = report.faces
        synthetic, pairs = (on.synthetic, on.impostor_pairs) if on else (False, 0)
        threshold = MatchThreshold(value, rate.far, report.report, synthetic)
        thresholds.append((not synthetic, pairs, threshold))
    if not thresholds:
        raise BundleError(
            f"no report of {what} shows a threshold at this rate: {'; '.join(reasons)}",
            f"{certify}, with more people, or ask for another rate",
        )
    return max(thresholds, key=lambda item: item[:2])[2]


def engine_option(session: Session) -> str:
    """What `--engine` calls an open engine: "int8", "int8-frame".

    Args:
        session: An open session.
    """
    kind = session.input_kind
    return session.precision if kind == "tensor" else f"{session.precision}-{kind}"
