"""Which gates an engine must pass, judged from what `verify` measured."""

from collections.abc import Iterator, Mapping

from ...bundle.manifest import Bundle
from ...metrics.comparison import VerificationComparison
from ...metrics.dimensions import CORRELATED_FACES
from ...metrics.rates import SOLID_IMPOSTORS, CosineDrift, RateChange, few_impostors
from ...metrics.strata import MIN_STRATUM_PAIRS, Stratum
from ...metrics.verification import far_name
from ..detector_engine import BundleDetector
from ..engine_record import session_record
from ..onnxruntime_session import ONNXRUNTIME
from ..session import Session
from .gates import (
    CANNOT_JUDGE,
    FAILED,
    MORE_PEOPLE,
    PASSED,
    Gate,
    VerdictReason,
    accuracy_gate,
    ceiling_gate,
    eer_gate,
    floor_gate,
    nameless,
    people_gate,
)
from .limits import COSINE_FLOORS, Limits
from .reference import ReferenceCheck

MIN_REFERENCE_COSINE = 0.9999  # from which model.onnx on this machine is the original network

# The engine samples whole grey levels as norm_crop does; a few pixels differ by one.
MIN_ALIGNMENT_COSINE = 0.999
MIN_REPEAT_COSINE = 0.9999  # of an engine with itself; batches may add up in another order

# Of one dimension over faces, engine and reference. INT8 keeps 0.99 on real networks and 0.94 on those of
# random weights; noise that the floors of the cosines allow leaves 0.85. A dimension that is swapped,
# dead or has another sign keeps 0.4 at most (docs/results/verification.md).
MIN_DIMENSION_CORRELATION = 0.8

# Of embeddings' lengths: untouched INT8 networks keep 0.87 to 1.00; y1's lengths are 7 to 13, so that
# a normalization added or removed leaves 0.07 to 0.13 (docs/results/verification.md).
MIN_LENGTH_RATIO = 0.7

_NO_PEOPLE = "no faces of several known people were given"
_GIVE_PEOPLE = "give --faces, a folder per person, or --pairs"
_NO_LIST = "no pair list was given"
_ALIKE = "the original network gives all these faces the same embedding, or nearly"
_OTHER_GOLDEN = "export again, with --golden and photographs of many people"

_MAX_DEFAULT_FAR = 1e-3  # that is judged in place of 1e-4 without being asked for


def judge_gates(
    limits: Limits,
    precision: str,
    golden: ReferenceCheck,
    drift: CosineDrift,
    comparison: VerificationComparison | None,
) -> tuple[list[Gate], list[str]]:
    """Judge what was measured.

    Args:
        limits: What the engine must satisfy.
        precision: "fp32", "fp16", "fp8" or "int8".
        golden: The golden faces' answer.
        drift: Cosines of engine and reference.
        comparison: Rates of both, where faces of several people were given.

    Returns:
        The gates, and in words what was not measured.
    """
    minimum, p1 = COSINE_FLOORS[precision]
    gates = [
        floor_gate(
            "fp32 model is the original: min cosine", golden.fp32_min_cosine, MIN_REFERENCE_COSINE
        ),
        floor_gate(
            "min cosine", drift.min, minimum if limits.min_cosine is None else limits.min_cosine
        ),
        floor_gate("p1 cosine", drift.p1, p1 if limits.p1_cosine is None else limits.p1_cosine),
    ]
    gates += _golden_gates(golden, drift, gates[1].limit)
    if comparison is None:
        not_measured = [f"people, TAR and FAR: {_NO_PEOPLE}"]
        gates += _unmeasured_gates(limits)
    else:
        rate = judged_rate(limits, comparison.tar)
        named = bool(comparison.mixed_gallery)  # else only listed pairs are known
        gates += rate_gates(limits, rate, named=named)
        not_measured = []
        if rate.far != limits.judged_far:
            wanted = comparison.tar[far_name(limits.judged_far)]
            why = wanted.reason or wanted.low_confidence
            not_measured.append(
                f"TAR at FAR {far_name(wanted.far)}, the default; FAR {far_name(rate.far)} was"
                f" judged: {why}"
            )
        if limits.max_stratum_drop is not None:
            gates.append(_worst_stratum_gate(limits.max_stratum_drop, comparison))
        if limits.max_eer is not None:
            eer, ends = comparison.curves.engine.eer, comparison.eer_interval_95
            gates.append(eer_gate(eer, limits.max_eer, ends, named=named))
        if limits.min_accuracy is not None:
            gates.append(_accuracy_gate(limits.min_accuracy, comparison))
        not_measured += comparison.notes
    if comparison is None or comparison.accuracy is None:
        not_measured.append(f"10-fold accuracy: {_NO_LIST}")
    return gates, not_measured


def _golden_gates(golden: ReferenceCheck, drift: CosineDrift, min_cosine: float) -> Iterator[Gate]:
    """What the cosines of faces in large batches do not show."""
    both = (golden.engine.min_dimension_correlation, drift.min_dimension_correlation)
    lowest = min((value for value in both if value is not None), default=None)
    if lowest is not None or golden.engine.faces >= CORRELATED_FACES:
        name = "each dimension of the embedding: min correlation"
        reason = "" if lowest is not None else _ALIKE
        yield floor_gate(name, lowest, MIN_DIMENSION_CORRELATION, reason, cure=_OTHER_GOLDEN)
    # An engine that aligns faces itself gives embeddings of unit length.
    aligns = golden.alignment_min_cosine is not None
    if golden.engine.min_length_ratio is not None and not aligns:
        name = "length of the embeddings: min ratio"
        yield floor_gate(name, golden.engine.min_length_ratio, MIN_LENGTH_RATIO)
    if golden.repeat_min_cosine is not None:
        name = "same faces again: min cosine"
        yield floor_gate(name, golden.repeat_min_cosine, MIN_REPEAT_COSINE)
    if golden.alignment_min_cosine is not None:
        name = "alignment in the engine and on the host: min cosine"
        yield floor_gate(name, golden.alignment_min_cosine, MIN_ALIGNMENT_COSINE)
    if golden.small_batches_min_cosine is not None:
        name = "batches of 1, 2, 3, 4, 8 and 16 faces: min cosine"
        yield floor_gate(name, golden.small_batches_min_cosine, min_cosine)


def judged_rate(limits: Limits, rates: Mapping[str, RateChange]) -> RateChange:
    """The rates at the FAR that was asked for, or by default at 1e-4, else 1e-3, as far as the pairs
    show them.

    At a larger FAR no door is opened: that few pairs show a rate at 1e-2 proves nothing about the
    default's, so it is judged only when it is asked for.

    Args:
        limits: With the FAR.
        rates: FAR by name -> rates, with the judged FAR among them.
    """
    wanted = rates[far_name(limits.judged_far)]
    if limits.far is not None or _solid(wanted):
        return wanted
    larger = [r for r in rates.values() if wanted.far < r.far <= _MAX_DEFAULT_FAR and _solid(r)]
    return min(larger, key=lambda rate: rate.far, default=wanted)


def stratum_gate(limits: Limits, stratum: Stratum) -> Gate:
    """Whether a kind of face that moved far more than the others loses no more than is allowed.

    Args:
        limits: What the engine must satisfy.
        stratum: The kind of face.
    """
    limit = limits.tar_drop if limits.max_stratum_drop is None else limits.max_stratum_drop
    name, ends = f"TAR drop of {stratum.name} faces", stratum.drop_interval_95
    if stratum.drop is None:
        reason = f"{stratum.pairs} genuine pairs have one, {MIN_STRATUM_PAIRS} needed"
        return ceiling_gate(name, None, limit, reason, cure="give more faces of that kind")
    return people_gate(name, stratum.drop, limit, "most", ends)


def precision_reasons(bundle: Bundle, session: Session | BundleDetector) -> list[VerdictReason]:
    """Whether the engine's own file computes in the precision that the verdict is about.

    Args:
        bundle: The bundle that it was opened from.
        session: What is judged.

    Returns:
        A reason for FAILED, or none.

    Raises:
        BundleError: The engine or its fingerprint was changed since.
        ModelError: The engine is not an ONNX model.
    """
    record = session_record(bundle, session)
    problem = record.problem() if record else ""
    role = " --role detector" if isinstance(session, BundleDetector) else ""
    cure = f"build it again: `fr-edge build-engine BUNDLE{role} --{session.precision}`"
    return [VerdictReason(FAILED, problem, cure)] if problem else []


def arithmetic_notes(session: Session) -> list[str]:
    """What a verdict on the CPU does not cover, in words.

    Args:
        session: What was judged.
    """
    if session.backend != ONNXRUNTIME:
        return []
    notes = ["TensorRT's arithmetic: this ran on onnxruntime's CPU"]
    if session.artifact == "graph":
        notes.append("an engine: the ONNX graph was judged, with every rounding of its Q/DQ nodes")
    elif session.int8_in_float and session.int8_in_float == session.int8_layers:
        notes.append(
            f"INT8: no layer of this engine computes in INT8, its {session.int8_layers} INT8 layers"
            " compute in float on this CPU; --artifact graph judges every rounding, as TensorRT does"
            " it"
        )
    elif session.int8_in_float:
        notes.append(
            f"INT8 rounding in {session.int8_in_float} of {session.int8_layers} INT8 layers, which"
            " compute in float on this CPU; --artifact graph judges every rounding, as TensorRT"
            " does it"
        )
    return notes


def unresolved_rates(tar_at_far: Mapping[str, float | None], impostors: int) -> list[str]:
    """Rates that were not measured, and why, in words.

    Args:
        tar_at_far: FAR by name -> TAR; None where the pairs do not resolve it.
        impostors: Number of impostor pairs.
    """
    return [
        f"TAR at FAR {far}: {few_impostors(impostors, float(far))}"
        for far, tar in tar_at_far.items()
        if tar is None
    ]


def _unmeasured_gates(limits: Limits) -> Iterator[Gate]:
    """Gates that were asked for and need people."""
    for key, name in _names(far_name(limits.judged_far)).items():
        limit = getattr(limits, key)
        if limit is not None:
            make = floor_gate if key.startswith("min") else ceiling_gate
            yield make(name, None, limit, _NO_PEOPLE, cure=_GIVE_PEOPLE)


def _names(far: str) -> dict[str, str]:
    """Limit -> its gate's name, of limits that need people."""
    return {
        "max_tar_drop": f"TAR drop at FAR {far}",
        "min_tar": f"TAR at FAR {far}",
        "min_kept_tar": f"TAR at the threshold kept from FAR {far}",
        "max_kept_far": f"FAR at the threshold kept from FAR {far}",
        "max_stratum_drop": "worst stratum's TAR drop",
        "max_eer": "equal error rate",
        "min_accuracy": "10-fold accuracy",
    }


def _solid(rate: RateChange) -> bool:
    return rate.delta is not None and not rate.low_confidence


def rate_gates(limits: Limits, rate: RateChange, *, named: bool) -> Iterator[Gate]:
    """The loss of TAR, and the rates that were asked for.

    Args:
        limits: What the engine must satisfy.
        rate: The judged rates.
        named: Whether it is known who is who.
    """
    names, interval = _names(far_name(rate.far)), rate.interval_95
    reason = rate.reason or rate.low_confidence
    if rate.delta is None or rate.engine is None:
        for key in ("max_tar_drop", "min_tar", "min_kept_tar", "max_kept_far"):
            limit = limits.tar_drop if key == "max_tar_drop" else getattr(limits, key)
            if limit is not None:
                make = floor_gate if key.startswith("min") else ceiling_gate
                yield make(names[key], None, limit, reason, cure=_more_impostors(rate.far))
        return
    drop = (0.0 - interval.delta[1], 0.0 - interval.delta[0]) if interval else None
    name, cure = names["max_tar_drop"], _more_impostors(rate.far) if reason else MORE_PEOPLE
    yield people_gate(name, 0.0 - rate.delta, limits.tar_drop, "most", drop, reason, cure)
    ends = interval.engine if interval else None
    if limits.min_tar is not None:
        name = names["min_tar"]
        yield people_gate(name, rate.engine, limits.min_tar, "least", ends, reason, cure)
    kept = rate.threshold_kept
    if limits.min_kept_tar is not None and kept.tar is not None:
        around = interval.kept_tar if interval else None
        name = names["min_kept_tar"]
        yield people_gate(name, kept.tar, limits.min_kept_tar, "least", around, reason, cure)
    if limits.max_kept_far is not None and kept.far is not None:
        around = interval.kept_far if interval else None
        name, limit = names["max_kept_far"], limits.max_kept_far
        yield people_gate(name, kept.far, limit, "most", around, *nameless(named, around))


def _more_impostors(far: float) -> str:
    return (
        f"give faces of more people, {round(SOLID_IMPOSTORS / far):,} impostor pairs among them,"
        " or a larger --far"
    )


def _worst_stratum_gate(limit: float, comparison: VerificationComparison) -> Gate:
    strata = [
        stratum
        for stratum in (*comparison.strata, *comparison.degraded)
        if comparison.strata_far is not None and stratum.drop is not None
    ]
    if not strata:
        reason = f"no stratum has {MIN_STRATUM_PAIRS} pairs"
        return ceiling_gate("worst stratum's TAR drop", None, limit, reason, cure=MORE_PEOPLE)
    gates = [
        people_gate(
            f"TAR drop at FAR {comparison.strata_far} of the worst stratum: {stratum.name}",
            stratum.drop or 0.0,
            limit,
            "most",
            stratum.drop_interval_95,
        )
        for stratum in strata
    ]
    order = (FAILED, CANNOT_JUDGE, PASSED)
    return min(gates, key=lambda gate: (order.index(gate.verdict), -(gate.value or 0.0)))


def _accuracy_gate(limit: float, comparison: VerificationComparison) -> Gate:
    accuracy = comparison.accuracy
    if accuracy is None:
        return floor_gate("10-fold accuracy", None, limit, _NO_LIST, cure="give --pairs")
    return accuracy_gate(accuracy.engine, limit, accuracy.engine_interval_95, accuracy.folds)
