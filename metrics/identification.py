"""One to many: whether the right person is found among all enrolled, and strangers are rejected."""

from dataclasses import dataclass

import numpy as np

from ..arrays import F32, I64
from .verification import allowed_impostors, far_name, normalise

FPIRS = (1e-1, 1e-2, 1e-3)  # false positive identification rates that reports show

_PROBES = 256  # scored at once
_ROWS = 16_384  # of the gallery scored at once: 16 MB of scores


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
    best, match = (part[:, 0] for part in nearest(unit[probe], gallery, 1))
    right = people[match] == person[probe]
    alarms = nearest(unit[strangers], gallery, 1)[0][:, 0]
    tpir: dict[str, float | None] = {}
    for fpir in FPIRS:
        threshold = threshold_at_fpir(alarms, fpir)
        hits = None if threshold is None else right & (best >= threshold)
        tpir[far_name(fpir)] = None if hits is None else float(hits.mean())
    return IdentificationResult(
        len(enrolled), len(probe), len(strangers), float(right.mean()), tpir
    )


def nearest(probes: F32, gallery: F32, count: int) -> tuple[F32, I64]:
    """The rows of a gallery that are most like each probe, by brute force in blocks.

    Args:
        probes: `(P, D) float32` of unit length.
        gallery: `(N, D) float32` of unit length.
        count: How many rows per probe.

    Returns:
        Cosines `(P, K) float32`, the highest first, and rows `(P, K) int64`; K is `count` or N. Of
        equal cosines the lower row is first.
    """
    count = min(count, len(gallery))
    cosine = np.full((len(probes), count), -np.inf, np.float32)
    row = np.full((len(probes), count), len(gallery), np.int64)
    if not count:
        return cosine, row
    for first in range(0, len(probes), _PROBES):
        part = slice(first, first + _PROBES)
        for start in range(0, len(gallery), _ROWS):
            scores = probes[part] @ gallery[start : start + _ROWS].T
            _merge(scores, start, cosine[part], row[part])
    return cosine, row


def _merge(scores: F32, start: int, cosine: F32, row: I64) -> None:
    """Put the scores `(p, rows)` of rows `start...` into the best ones so far `(p, K)`, in place."""
    best, column = scores.max(axis=1), scores.argmax(axis=1)
    count = cosine.shape[1]
    for probe in np.flatnonzero(best > cosine[:, -1]):
        if count == 1:
            cosine[probe], row[probe] = best[probe], start + column[probe]
            continue
        columns = np.flatnonzero(scores[probe] > cosine[probe, -1])
        if len(columns) > count:
            lowest = np.partition(scores[probe, columns], -count)[-count]
            columns = columns[scores[probe, columns] >= lowest]  # more where several are equal
        values = np.concatenate([cosine[probe], scores[probe, columns]])
        rows = np.concatenate([row[probe], start + columns])
        order = np.lexsort((rows, -values))[:count]
        cosine[probe], row[probe] = values[order], rows[order]


def threshold_at_fpir(strangers: F32, fpir: float) -> float | None:
    """The lowest threshold at which no more than a share of the strangers is taken for somebody.

    A probe is identified when its highest cosine in the gallery is the threshold or more.

    Args:
        strangers: The highest cosine of each stranger in the gallery, `(S,) float32`.
        fpir: False positive identification rate, 0 to 1.

    Returns:
        The threshold; None with fewer than 1 / fpir strangers, who cannot show this rate.
    """
    allowed = allowed_impostors(fpir, len(strangers))
    if allowed < 1:
        return None
    if allowed >= len(strangers):
        return -1.0
    # The first stranger who must be rejected sets the threshold.
    highest_refused = np.sort(strangers)[-allowed - 1]
    return float(np.nextafter(highest_refused, np.float32(2)))
