"""From what was measured to gates, advice, and the list of what was not."""

from collections.abc import Sequence

from ..accuracy.drift import Drift
from ..accuracy.metrics import far_name
from ..accuracy.rates import Rate
from ..accuracy.separation import Separation
from ..accuracy.strata import ENOUGH
from .gates import Gate
from .policy import DEFAULTS, FAR, MAX_TAR_DROP, PROOF, Limits
from .reference import Proof


def judge(
    limits: Limits, precision: str, proof: Proof, drift: Drift, told: Separation | None
) -> tuple[list[Gate], list[str]]:
    """The gates, and what was left unmeasured.

    A gate that was asked for and could not be measured fails; the default TAR gate is left out
    where the pairs are too few, and said to be.
    """
    minimum, p1 = DEFAULTS[precision]
    gates = [
        Gate("fp32 model is the original: min cosine", proof.fp32, PROOF),
        Gate("min cosine", drift.min, minimum if limits.min_cosine is None else limits.min_cosine),
        Gate("p1 cosine", drift.p1, p1 if limits.p1_cosine is None else limits.p1_cosine),
    ]
    far = FAR if limits.far is None else limits.far
    name = f"TAR drop at FAR {far_name(far)}"
    rate = told.at(far) if told else None
    why = rate.why if rate else "no faces of several known people were given"
    shaky = rate.shaky if rate else ""
    if limits.max_tar_drop is not None or not (why or shaky):
        drop = -rate.delta if rate and rate.delta is not None else None
        limit = MAX_TAR_DROP if limits.max_tar_drop is None else limits.max_tar_drop
        gates.append(Gate(name, drop, limit, most=True, why=why))
    if limits.max_stratum_drop is not None:
        gates.append(_stratum_gate(limits.max_stratum_drop, told))
    missing = [f"{name}: {why}"] if why else [f"{name} is shaky: {shaky}"] if shaky else []
    missing += told.notes if told else ()
    if told is None or told.accuracy is None:
        missing.append("10-fold accuracy: no pair list was given")
    return gates, missing


def mixed_advice(limits: Limits, rates: Sequence[Rate]) -> dict[str, str | float] | None:
    """May people enrolled with another network be matched by the engine, or must they enrol again?

    They may stay when mixed pairs, `rates`, lose no more TAR than the engine's own may.
    """
    far = FAR if limits.far is None else limits.far
    mixed = next((rate for rate in rates if rate.far == far), None)
    if mixed is None or mixed.delta is None or mixed.engine_threshold is None:
        return None
    limit = MAX_TAR_DROP if limits.max_tar_drop is None else limits.max_tar_drop
    stays = -mixed.delta <= limit
    return {
        "verdict": "keep the gallery" if stays else "enrol again",
        "far": far_name(far),
        "delta": round(mixed.delta, 6),
        "threshold": round(mixed.engine_threshold, 6),
    }


def _stratum_gate(limit: float, told: Separation | None) -> Gate:
    drops = {}
    if told is not None:
        found = (*told.strata, *told.worsened)
        drops = {stratum.name: stratum.drop for stratum in found if stratum.drop is not None}
    if told is None or told.judged is None or not drops:
        return Gate("worst stratum's TAR drop", None, limit, True, f"no stratum has {ENOUGH} pairs")
    worst = max(drops, key=lambda name: drops[name])
    name = f"TAR drop at FAR {far_name(told.judged.far)} of the worst stratum: {worst}"
    return Gate(name, drops[worst], limit, most=True)
