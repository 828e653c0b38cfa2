"""How well reference and engine tell the same people apart: all that follows from the embeddings.

Takes embeddings and labels; knows nothing of networks or files.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays import F32
from ..faces.pairs import Pairs
from ..faces.sources import Faces
from .accuracy import listed_pair_accuracy, listed_pairs
from .intervals import FEW_PEOPLE, tar_intervals
from .rates import RateChange, compare_rates, curves, with_intervals
from .strata import Stratum, compare_strata
from .verification import FARS, all_pairs, far_name


@dataclass(frozen=True)
class VerificationComparison:
    """`rates` by FAR; `mixed` the same with the reference's embeddings enrolled and the engine's
    as probes; `strata` with the largest drop first; `curves` for the report; `notes` what is shaky
    about it; `accuracy` (reference, engine) with a pair list. `judged` is the rate whose thresholds
    serve the strata, None where no FAR is solid; `worsened` are copies made worse on purpose."""

    judged: RateChange | None
    rates: tuple[RateChange, ...]
    mixed: tuple[RateChange, ...]
    strata: tuple[Stratum, ...]
    curves: dict[str, Any]
    notes: tuple[str, ...]
    accuracy: tuple[float, float] | None
    worsened: tuple[Stratum, ...] = ()

    def at(self, far: float) -> RateChange:
        return next(rate for rate in self.rates if rate.far == far)

    def to_json(self) -> dict[str, Any]:
        names = ("reference", "engine")
        return {
            "tar": {far_name(rate.far): rate.to_json() for rate in self.rates},
            "mixed_gallery": {far_name(rate.far): rate.to_json() for rate in self.mixed},
            "strata_far": far_name(self.judged.far) if self.judged else None,
            "strata": [stratum.to_json() for stratum in self.strata],
            "degraded": [stratum.to_json() for stratum in self.worsened],
            "accuracy": dict(zip(names, self.accuracy, strict=True)) if self.accuracy else None,
            "curves": self.curves,
        }


def compare_verification(
    old: F32,
    new: F32,
    faces: Faces,
    pairs: Pairs | None,
    quality: F32,
    far: float,
    groups: Mapping[str, npt.NDArray[np.bool_]] | None = None,
) -> VerificationComparison | None:
    """Compare `(N, D)` embeddings of `faces` by reference and engine; `quality` is `(N, 5)`, and
    `groups` masks of faces by name.

    All pairs among the faces are counted where their labels are people, else those of `pairs`;
    None where there is neither.
    """
    fars = (*FARS, far)
    labels = np.asarray(faces.labels, np.int64)
    accuracy = (
        (listed_pair_accuracy(old, pairs).mean, listed_pair_accuracy(new, pairs).mean)
        if pairs
        else None
    )
    if faces.labelled and faces.identities > 1:
        before, after = all_pairs(old, labels), all_pairs(new, labels)
        rates = compare_rates(before, after, fars)
        rates = with_intervals(rates, tar_intervals(old, new, labels, (before, after), fars))
        mixed = compare_rates(before, all_pairs(old, labels, new), fars)
        judged = _strata_rate(rates, far)
        strata = compare_strata(old, new, labels, quality, judged, groups)
        notes = _notes(labels)
    elif pairs is not None:
        before, after = listed_pairs(old, pairs), listed_pairs(new, pairs)
        rates, mixed, strata, judged = compare_rates(before, after, fars), [], [], None
        notes = ("intervals, mixed gallery and strata: the pair list does not say who is who",)
    else:
        return None
    return VerificationComparison(
        judged,
        tuple(rates),
        tuple(mixed),
        tuple(strata),
        {"reference": curves(before), "engine": curves(after)},
        notes,
        accuracy,
    )


def _strata_rate(rates: list[RateChange], far: float) -> RateChange | None:
    """The FAR asked for, or the nearest larger one that the pairs hold solidly."""
    solid = [r for r in rates if r.far >= far and r.delta is not None and not r.shaky]
    return solid[-1] if solid else None


def _notes(labels: npt.NDArray[np.int64]) -> tuple[str, ...]:
    several = int((np.bincount(labels) > 1).sum())
    if several >= FEW_PEOPLE:
        return ()
    return (f"trustworthy intervals: {several} people have two faces, {FEW_PEOPLE} needed",)
