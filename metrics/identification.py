"""One to many: is the right person found among all enrolled, and are strangers turned away?"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..arrays import F32
from .verification import normalise

FPIRS = (1e-1, 1e-2, 1e-3)

_BLOCK = 1024


@dataclass(frozen=True)
class IdentificationResult:
    """`rank1` over `probes` of enrolled people; `tpir` by FPIR: their share found at rank 1 at or
    above the threshold that lets so many of `strangers` pass, None where these are too few."""

    gallery: int
    probes: int
    strangers: int
    rank1: float
    tpir: dict[float, float | None]


def identify(embeddings: F32, labels: npt.NDArray[np.int64]) -> IdentificationResult | None:
    """Enrol the first face of everybody who has two or more; the rest are probes.

    People with one face are the strangers. `embeddings (N, D)`, `labels (N,)`; None where nobody
    has two faces.
    """
    person = np.unique(labels, return_inverse=True)[1]
    count = np.bincount(person)
    first = np.full(len(count), -1)
    first[person[::-1]] = np.arange(len(person))[::-1]  # the earliest face of each person stays
    enrolled = first[count > 1]
    if not len(enrolled):
        return None
    unit = normalise(embeddings)
    gallery, people = unit[enrolled], person[enrolled]
    probe = np.flatnonzero((count[person] > 1) & (first[person] != np.arange(len(person))))
    strangers = first[count == 1]
    best, found = _best(unit[probe], gallery)
    right = people[found] == person[probe]
    alarms = np.sort(_best(unit[strangers], gallery)[0])[::-1]
    tpir: dict[float, float | None] = {}
    for fpir in FPIRS:
        allowed = int(np.floor(fpir * len(alarms) + 1e-9))
        # The first stranger who must be turned away sets the threshold.
        tpir[fpir] = float((right & (best > alarms[allowed])).mean()) if allowed else None
    return IdentificationResult(
        len(enrolled), len(probe), len(strangers), float(right.mean()), tpir
    )


def _best(probes: F32, gallery: F32) -> tuple[F32, npt.NDArray[np.int64]]:
    """The highest cosine of each probe in the gallery, and whose it is."""
    best = np.empty(len(probes), np.float32)
    found = np.empty(len(probes), np.int64)
    for start in range(0, len(probes), _BLOCK):
        scores = probes[start : start + _BLOCK] @ gallery.T
        index = scores.argmax(axis=1)
        found[start : start + _BLOCK] = index
        best[start : start + _BLOCK] = scores[np.arange(len(index)), index]
    return best, found
