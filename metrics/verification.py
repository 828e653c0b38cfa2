"""Verification metrics from embeddings: cosine scores, TAR@FAR, ROC, EER, 10-fold accuracy.

Knows arrays only, nothing of files or networks. All genuine and impostor pairs of a set are
counted into fine histograms, so memory does not grow with the number of pairs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..arrays import F32

BINS = 1 << 20
"""Bins over cosine -1..1: thresholds are exact to 2e-6."""

FARS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)

_BLOCK = 1 << 22
"""So many scores are held at once."""


@dataclass(frozen=True)
class Scores:
    """How many genuine and impostor pairs fall into each cosine bin, `(BINS,) int64` each."""

    genuine: npt.NDArray[np.int64]
    impostor: npt.NDArray[np.int64]

    @cached_property
    def genuine_pairs(self) -> int:
        return int(self.genuine.sum())

    @cached_property
    def impostor_pairs(self) -> int:
        return int(self.impostor.sum())

    @cached_property
    def highest_impostors(self) -> npt.NDArray[np.int64]:
        """How many impostors are in the highest 1, 2, ... bins, `(BINS,)`."""
        return np.cumsum(self.impostor[::-1])


def normalise(embeddings: F32) -> F32:
    """`(N, D) float32` -> unit length; a zero embedding stays zero."""
    length = np.linalg.norm(embeddings, axis=1, keepdims=True)
    out: F32 = (embeddings / np.maximum(length, 1e-12)).astype(np.float32)
    return out


def cosines(first: F32, second: F32) -> F32:
    """Row by row cosine of two `(N, D)` arrays -> `(N,) float32`."""
    out: F32 = np.einsum("nd,nd->n", normalise(first), normalise(second))
    return out


@dataclass(frozen=True)
class Block:
    """Cosines `(r, c)` of faces `row..row+r` with `column..column+c`; each pair of faces is in one
    block once. `genuine` and `impostor` say which count, None where all are impostors."""

    row: int
    column: int
    cosine: F32
    genuine: npt.NDArray[np.bool_] | None
    impostor: npt.NDArray[np.bool_] | None


def score_blocks(
    unit: F32, person: npt.NDArray[np.int64], probes: F32 | None = None
) -> Iterator[Block]:
    """All pairs of `(N, D)` unit embeddings whose `person (N,)` is sorted, a few millions a time.

    With `probes` the later face of a pair is taken from there: another network's embedding of it.
    """
    probes = unit if probes is None else probes
    rows = max(1, _BLOCK // max(1, len(unit)))
    for start in range(0, len(unit), rows):
        stop = min(start + rows, len(unit))
        # Beyond this column nobody is one of the rows' people: no mask is needed there.
        edge = int(np.searchsorted(person, person[stop - 1], side="right"))
        near = unit[start:stop] @ probes[start:edge].T
        later = np.triu(np.ones(near.shape, bool), 1)
        same = person[start:stop, None] == person[None, start:edge]
        yield Block(start, start, near, later & same, later & ~same)
        if edge < len(unit):
            yield Block(start, edge, unit[start:stop] @ probes[edge:].T, None, None)


def all_pairs(
    embeddings: F32, labels: Sequence[int] | npt.NDArray[np.int64], probes: F32 | None = None
) -> Scores:
    """Score every pair of `(N, D)` embeddings; equal labels are genuine.

    With `probes (N, D)` one face of each pair, the later one, is embedded by another network.
    """
    order = np.argsort(labels, kind="stable")
    unit, person = normalise(embeddings)[order], np.asarray(labels, np.int64)[order]
    other = None if probes is None else normalise(probes)[order]
    genuine, impostor = np.zeros(BINS, np.int64), np.zeros(BINS, np.int64)
    for block in score_blocks(unit, person, other):
        index = _bins(block.cosine)
        if block.genuine is None or block.impostor is None:
            impostor += np.bincount(index.ravel(), minlength=BINS)
        else:
            genuine += np.bincount(index[block.genuine], minlength=BINS)
            impostor += np.bincount(index[block.impostor], minlength=BINS)
    return Scores(genuine, impostor)


def threshold_at_far(scores: Scores, far: float) -> float | None:
    """The lowest cosine threshold whose FAR is at most `far`; None with fewer than 1/far pairs."""
    total = scores.impostor_pairs
    if total * far < 1.0:
        return None
    bins = int(np.searchsorted(scores.highest_impostors, far * total, side="right"))
    return 1.0 - 2.0 * bins / BINS


def tar_at_far(scores: Scores, far: float) -> float | None:
    """The share of genuine pairs at or above the threshold; None where it cannot be measured."""
    threshold = threshold_at_far(scores, far)
    if threshold is None or not scores.genuine_pairs:
        return None
    return rates_at(scores, threshold)[0]


def rates_at(scores: Scores, threshold: float) -> tuple[float, float]:
    """TAR and FAR when cosines at or above `threshold` are accepted; 0 where there is no pair."""
    first = round((threshold + 1.0) / 2.0 * BINS)
    return (
        float(scores.genuine[first:].sum()) / max(1, scores.genuine_pairs),
        float(scores.impostor[first:].sum()) / max(1, scores.impostor_pairs),
    )


def far_name(far: float) -> str:
    """`0.0001` -> `1e-4`: how reports name a false accept rate."""
    return np.format_float_scientific(far, trim="-", exp_digits=1)


def roc(scores: Scores) -> dict[str, list[float]]:
    """TAR over FAR, 1 down to the smallest FAR that the impostor pairs resolve."""
    smallest = max(1e-6, 1.0 / max(1, scores.impostor_pairs))
    far = np.geomspace(1.0, smallest, 61)
    tar = [tar_at_far(scores, float(f) * (1 + 1e-9)) for f in far]
    kept = [(float(f), t) for f, t in zip(far, tar, strict=True) if t is not None]
    return {"far": [f for f, _ in kept], "tar": [t for _, t in kept]}


def equal_error_rate(scores: Scores) -> float:
    """Where FAR equals FRR, as a fraction."""
    far = scores.highest_impostors[::-1] / max(1, scores.impostor_pairs)
    frr = (np.cumsum(scores.genuine) - scores.genuine) / max(1, scores.genuine_pairs)
    at = int(np.argmin(np.abs(far - frr)))
    return float((far[at] + frr[at]) / 2)


def _bins(cosine: F32) -> npt.NDArray[np.intp]:
    scaled = cosine * np.float32(BINS / 2)
    scaled += np.float32(BINS / 2)
    index: npt.NDArray[np.intp] = scaled.astype(np.intp)
    return np.clip(index, 0, BINS - 1, out=index)
