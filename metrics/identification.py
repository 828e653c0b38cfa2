"""One to many: whether the right person is found among all enrolled, and strangers are rejected."""

from dataclasses import dataclass

import numpy as np

from ..arrays import F32, I64
from .verification import allowed_impostors, far_name, normalise

FPIRS = (1e-1, 1e-2, 1e-3)  # false positive identification rates that reports show

_BLOCK = 1024  # probes scored at once


@dataclass(frozen=True)
class IdentificationResult:
    """Closed-set and open-set search.

    Attributes:
        gallery: Enrolled people.
        probes: Other faces of enrolled people.
        strangers: Faces of people who are not enrolled.
        rank1: Share of the probes whose best match is the right person.
        tpir_at_fpir: FPIR by name -> share of the probes found at rank 1 above the threshold that lets this share
            of the strangers pass; None where these are too few.
    """

    gallery: int
    probes: int
    strangers: int
    rank1: float
    tpir_at_fpir: dict[str, float | None]


def identify(embeddings: F32, labels: I64) -> IdentificationResult | None:
    """Enrol the first face of each person who has two or more; their other faces are probes.

    People with one face are the strangers.

    Args:
        embeddings: `(N, D) float32` of any length.
        labels: Identity of each face, `(N,) int64`.

    Returns:
        None where all people have one face.
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
    best, match = _best(unit[probe], gallery)
    right = people[match] == person[probe]
    alarms = np.sort(_best(unit[strangers], gallery)[0])[::-1]
    tpir: dict[str, float | None] = {}
    for fpir in FPIRS:
        allowed = allowed_impostors(fpir, len(alarms))
        # The first stranger who must be rejected sets the threshold.
        tpir[far_name(fpir)] = float((right & (best > alarms[allowed])).mean()) if allowed else None
    return IdentificationResult(
        len(enrolled), len(probe), len(strangers), float(right.mean()), tpir
    )


def _best(probes: F32, gallery: F32) -> tuple[F32, I64]:
    """The highest cosine of each probe in the gallery, and the row it is of."""
    best = np.empty(len(probes), np.float32)
    match = np.empty(len(probes), np.int64)
    for start in range(0, len(probes), _BLOCK):
        scores = probes[start : start + _BLOCK] @ gallery.T
        index = scores.argmax(axis=1)
        match[start : start + _BLOCK] = index
        best[start : start + _BLOCK] = scores[np.arange(len(index)), index]
    return best, match
