"""`evaluate`: how well a bundle tells people apart, on a protocol with known answers."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from ...arrays import F32
from ...bundle.bundle import open_bundle
from ...bundle.manifest import Bundle
from ...bundle.provenance import digest_pairs, with_digests
from ...errors import FacesError
from ...faces.ijb import Ijb, pool_templates, template_cosines
from ...faces.pairs import Pairs
from ...faces.quality import faces_for
from ...faces.sources import Faces
from ...metrics.accuracy import (
    Accuracy,
    accuracy_interval,
    fold_interval,
    fold_intervals,
    insightface_accuracy,
    nearest_tar,
    pair_accuracy,
    single_fold,
)
from ...metrics.identification import identify
from ...metrics.intervals import RateIntervals, rate_intervals
from ...metrics.person_variance import few_people
from ...metrics.protocols import draw_pairs
from ...metrics.rates import SOLID_IMPOSTORS, few_impostors
from ...metrics.template_intervals import template_intervals
from ...metrics.verification import (
    FARS,
    Scores,
    all_pairs,
    cosines,
    count_scores,
    equal_error_rate,
    far_name,
    tar_at_far,
    threshold_at_far,
)
from ...progress import Track, silent
from ..session import Artifact, open_session, session_provenance
from .embeddings_file import check_embeddings
from .gates import (
    PASSED,
    Gate,
    VerdictReason,
    accuracy_gate,
    ceiling_gate,
    eer_gate,
    floor_gate,
    gate_reasons,
    overall_verdict,
    people_gate,
)
from .judgement import arithmetic_notes, precision_reasons, unresolved_rates
from .limits import (
    POLICY_NAME,
    EvaluateLimits,
    kept_policy,
    merged_policy,
    with_policy_signatures,
)
from .rank_embedding import embedded_batches, judged_identity
from .rank_exchange import ALONE, RankShare
from .result import (
    AccuracyMean,
    EvaluateResult,
    IjbProtocol,
    IjbResult,
    PairCounts,
    ProtocolSummary,
    opened_file,
    protocol_name,
    report_name,
    save_result,
)

_IJB_FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
_NOT_MEASURED = "not measured: "
_OTHER = "evaluate a pair list or a folder of people"

Evaluated = TypeVar("Evaluated", EvaluateResult, IjbResult)


def evaluate(
    bundle: Bundle | str | Path,
    protocol: Pairs | Faces,
    engine: str = "auto",
    backend: str = "auto",
    track: Track = silent,
    *,
    artifact: Artifact = "engine",
    flip: bool = False,
    policy: Path | None = None,
    name: str = "",
    also: tuple[str, ...] = (),
    ranks: RankShare = ALONE,
    **limits: float | None,
) -> EvaluateResult:
    """Judge an engine on a pair list or a folder of people.

    Writes `reports/evaluate-PRECISION-PROTOCOL.json`. Accuracy is over the pair list's folds (LFW's
    protocol; for a folder the list is sampled, seeded), TAR at FAR over all pairs among the faces.

    Args:
        bundle: An open bundle or its folder.
        protocol: A pair list, or faces with a folder per person.
        engine: "fp32", "fp16", "fp8", "int8" or "auto", as `open_session`.
        backend: As `open_session`.
        track: Shows progress.
        artifact: "engine" judges the engine that was built, exactly; "graph" the ONNX graph on
            onnxruntime with every rounding that its Q/DQ nodes ask for.
        flip: Whether an embedding is the sum of the face's and its mirror image's, as papers
            report; a device that embeds once has the figures without.
        policy: A TOML file with limits, which the bundle keeps.
        name: The protocol's name in the report; by default that of the faces.
        also: Other files of the bundle that decide the result: those of its detector.
        ranks: Rank 0 of how many processes; the others call `evaluate_share`.
        limits: Gates, by the names of `EvaluateLimits`: `min_tar=0.95`. Those left out come from
            `policy`, else from the bundle's policy.

    Raises:
        UsageError: Impossible limits.
        DataError: The bundle's policy cannot be read.
        BundleError: The engine was not built, or a file was changed.
        MachineError: The backend cannot run here.
        FacesError: The faces hold no genuine or no impostor pair.
        RankLost: Another process failed, died, or has not begun.
        ModelError: An embedding is zero or not finite.
    """
    asked = EvaluateLimits(**limits)
    bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    bundle = with_policy_signatures(bundle, policy)
    listed = isinstance(protocol, Pairs)
    faces = protocol.faces if isinstance(protocol, Pairs) else protocol
    faces, images = with_digests(faces_for(faces, bundle.spec))
    pairs = protocol if isinstance(protocol, Pairs) else draw_pairs(protocol.labels)
    with open_session(bundle, engine, backend, artifact=artifact) as session:
        gated = merged_policy(asked, bundle, policy, session.precision)
        doubts = precision_reasons(bundle, session)
        unjudged = [f"{_NOT_MEASURED}{note}" for note in arithmetic_notes(session)]
        rows = embedded_batches(
            session,
            faces,
            judged_identity(session),
            flip=flip,
            ranks=ranks,
            digests=images,
            track=track,
            label="evaluating",
        )
        embeddings = np.concatenate(list(rows))
    check_embeddings(embeddings, faces.keys, session.file)
    if named := faces.labelled:
        scores = all_pairs(embeddings, faces.labels)
    else:
        cosine = cosines(embeddings[pairs.first], embeddings[pairs.second])
        scores = count_scores(cosine, pairs.same)
    if not scores.genuine_pairs or not scores.impostor_pairs:
        raise FacesError(
            f"{faces.where} has {scores.genuine_pairs} genuine and {scores.impostor_pairs} "
            "impostor pairs among its faces, expected both",
            "one folder per person: the folder's name is the identity",
        )
    fars = sorted({*FARS, gated.judged_far}, reverse=True)
    accuracy = pair_accuracy(embeddings, pairs)
    legacy = insightface_accuracy(embeddings[pairs.first], embeddings[pairs.second], pairs.same)
    if named:
        labels = np.asarray(faces.labels, np.int64)
        intervals = rate_intervals(embeddings, labels, scores, fars)
        accuracy_ends = accuracy_interval(embeddings, pairs, labels)
        few = few_people(labels)
    else:
        by_fold = fold_intervals(cosine, cosine, pairs.same, pairs.fold, fars)
        intervals = RateIntervals({rate: ends.engine for rate, ends in by_fold.items()}, None)
        few = ""
        accuracy_ends = fold_interval(accuracy)
    name = name or protocol_name(faces)
    result = EvaluateResult(
        engine=session.precision,
        backend=session.backend,
        artifact=opened_file(session),
        judged=session.artifact,
        protocol=ProtocolSummary(
            "pair list" if listed else "identity folder, sampled pairs",
            len(pairs),
            len(faces),
            faces.identities,
            faces.synthetic,
            flip,
            name,
        ),
        accuracy=accuracy.mean,
        accuracy_std=accuracy.std,
        folds=accuracy.folds,
        accuracy_insightface=AccuracyMean(legacy.mean, legacy.std),
        accuracy_interval_95=accuracy_ends,
        eer_interval_95=intervals.eer,
        eer=equal_error_rate(scores),
        tar_at_far={far_name(rate): tar_at_far(scores, rate) for rate in fars},
        interval_95_at_far={far_name(rate): ends for rate, ends in intervals.tar.items()},
        threshold_at_far={far_name(rate): threshold_at_far(scores, rate) for rate in fars},
        pairs=PairCounts(scores.genuine_pairs, scores.impostor_pairs),
        identification=identify(embeddings, faces.labels) if named else None,
        notes=tuple(filter(None, (*_notes(scores, accuracy, named), few, *unjudged))),
        report=report_name(
            "evaluate", session, name, faces, pairs, {"flip": flip, "limits": gated}, images
        ),
        provenance=session_provenance(
            bundle,
            session,
            images=images,
            pairs=pairs,
            list_sha256=protocol.sha256 if isinstance(protocol, Pairs) else "",
            also=(POLICY_NAME, *also),
            instead={POLICY_NAME: policy},
        ),
    )
    result = _with_verdict(result, list(_gates(gated, result)), doubts)
    summary = {"accuracy": result.accuracy, "verdict": result.verdict}
    save_result(bundle, "evaluate", result, summary=summary, files=kept_policy(policy))
    return result


def evaluate_ijb(
    bundle: Bundle | str | Path,
    ijb: Ijb,
    engine: str = "auto",
    backend: str = "auto",
    track: Track = silent,
    *,
    artifact: Artifact = "engine",
    norm: bool = True,
    detector: bool = True,
    flip: bool = True,
    policy: Path | None = None,
    name: str = "ijb",
    ranks: RankShare = ALONE,
    **limits: float | None,
) -> IjbResult:
    """Judge an engine on IJB-B or IJB-C: TAR over pairs of templates of many images.

    Writes `reports/evaluate-PRECISION-PROTOCOL.json`. Memory holds templates, never all images'
    embeddings.

    Args:
        bundle: An open bundle or its folder.
        ijb: What `faces.ijb.read_ijb` read.
        engine: "fp32", "fp16", "fp8", "int8" or "auto", as `open_session`.
        backend: As `open_session`.
        track: Shows progress.
        artifact: "engine" or "graph", as `evaluate`.
        norm: Whether an image counts by its embedding's norm.
        detector: Whether an image counts by its detector's score.
        flip: Whether the mirror image's embedding is added.
        policy: A TOML file with limits, which the bundle keeps.
        name: The protocol's name in the report.
        ranks: As `evaluate`.
        limits: Gates, by the names of `EvaluateLimits`; `far` is one of the table's. Those left out
            come from `policy`, else from the bundle's policy.

    Raises:
        UsageError: Impossible limits.
        DataError: The bundle's policy cannot be read.
        BundleError: The engine was not built, or a file was changed.
        MachineError: The backend cannot run here.
        FacesError: An image is damaged.
        RankLost: As `evaluate`.
        ModelError: An embedding is zero or not finite.
    """
    asked = EvaluateLimits(**limits)
    bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    bundle = with_policy_signatures(bundle, policy)
    images, digests = with_digests(ijb.faces.sized(bundle.spec.crop_side))
    ijb = replace(ijb, faces=images)
    with open_session(bundle, engine, backend, artifact=artifact) as session:
        gated = merged_policy(asked, bundle, policy, session.precision)
        doubts = precision_reasons(bundle, session)
        unjudged = [f"{_NOT_MEASURED}{note}" for note in arithmetic_notes(session)]
        batches = embedded_batches(
            session,
            ijb.faces,
            judged_identity(session),
            flip=flip,
            ranks=ranks,
            digests=digests,
            track=track,
            label="evaluating",
        )
        checked = _checked(batches, ijb.faces.keys, session.file)
        templates, numbers = pool_templates(checked, ijb, norm=norm, detector=detector)
    scores = template_cosines(templates, numbers, ijb)
    tar = nearest_tar(scores, ijb.same, _IJB_FARS)
    first, second = (np.searchsorted(numbers, ends) for ends in (ijb.first, ijb.second))
    intervals = template_intervals(scores, ijb.same, first, second, _IJB_FARS)
    impostor = int((~ijb.same).sum())
    flags = f"N{norm:d}D{detector:d}F{flip:d}"
    result = IjbResult(
        engine=session.precision,
        backend=session.backend,
        artifact=opened_file(session),
        judged=session.artifact,
        protocol=IjbProtocol("IJB 1:1", flags, len(ijb.faces), len(templates), name),
        tar_at_far={
            far_name(far): value if impostor * far >= 1 else None
            for far, value in zip(_IJB_FARS, tar, strict=True)
        },
        interval_95_at_far={far_name(far): ends for far, ends in intervals.items()},
        pairs=PairCounts(int(ijb.same.sum()), impostor),
        notes=(*filter(None, (few_impostors(impostor, far) for far in _IJB_FARS)), *unjudged),
        report=report_name(
            "evaluate",
            session,
            f"{name}-{flags}",
            ijb.faces,
            None,
            (ijb.first, ijb.second, ijb.same, gated),
            digests,
        ),
        provenance=replace(
            session_provenance(
                bundle,
                session,
                images=digests,
                also=(POLICY_NAME,),
                instead={POLICY_NAME: policy},
            ),
            pairs=digest_pairs(np.zeros(len(ijb.same), np.int64), ijb.first, ijb.second, ijb.same),
        ),
    )
    result = _with_verdict(result, list(_gates(gated, result)), doubts)
    save_result(bundle, "evaluate", result, options={"flags": flags}, files=kept_policy(policy))
    return result


def _checked(batches: Iterable[F32], keys: Sequence[str], name: str) -> Iterator[F32]:
    done = 0
    for rows in batches:
        check_embeddings(rows, keys[done : done + len(rows)], name)
        done += len(rows)
        yield rows


def _notes(scores: Scores, accuracy: Accuracy, named: bool) -> Iterator[str]:
    if not named:
        yield (
            f"{_NOT_MEASURED}all pairs, the interval of the EER and one to many, since the pair list"
            " does not name the people; other intervals are over its folds"
        )
    few = (few_impostors(scores.impostor_pairs, far) for far in FARS)
    yield from filter(None, (single_fold(accuracy.folds), *few))


def _with_verdict(result: Evaluated, gates: list[Gate], doubts: list[VerdictReason]) -> Evaluated:
    """A result with its gates, their verdict (if there are any, or doubts), and what is not measured."""
    missing: list[str] = unresolved_rates(result.tar_at_far, result.pairs.impostor)
    missing += [n[len(_NOT_MEASURED) :] for n in result.notes if n.startswith(_NOT_MEASURED)]
    result = replace(result, not_measured=tuple(missing))
    if not gates and not doubts:
        return result
    reasons = (*doubts, *gate_reasons(gates))
    verdict = overall_verdict(reason.verdict for reason in reasons)
    passed = verdict == PASSED
    return replace(result, gates=tuple(gates), verdict=verdict, passed=passed, reasons=reasons)


def _gates(limits: EvaluateLimits, result: EvaluateResult | IjbResult) -> Iterator[Gate]:
    if limits.min_tar is not None:
        yield _tar_gate(limits.min_tar, limits.judged_far, result)
    accuracy, eer = limits.min_accuracy, limits.max_eer
    if isinstance(result, IjbResult):
        asked = (floor_gate, "10-fold accuracy", accuracy), (ceiling_gate, "equal error rate", eer)
        for gate, name, limit in asked:
            if limit is not None:
                yield gate(name, None, limit, "IJB has none", cure=_OTHER)
        return
    if accuracy is not None:
        ends = result.accuracy_interval_95
        yield accuracy_gate(result.accuracy, accuracy, ends, result.folds)
    if eer is not None:
        named = result.identification is not None
        yield eer_gate(result.eer, eer, result.eer_interval_95, named=named)


def _tar_gate(limit: float, far: float, result: EvaluateResult | IjbResult) -> Gate:
    name, impostor = far_name(far), result.pairs.impostor
    tar, reason = result.tar_at_far.get(name), few_impostors(impostor, far)
    title = f"TAR at FAR {name}"
    if tar is None or reason:
        needed = f"{round(SOLID_IMPOSTORS / far):,} impostor pairs"
        cure = f"give faces of more people, {needed} among them, or a larger --far"
        reason = reason or f"the protocol has no FAR {name}"
        return floor_gate(title, tar, limit, reason, cure=cure)
    return people_gate(title, tar, limit, "least", result.interval_95_at_far.get(name))
