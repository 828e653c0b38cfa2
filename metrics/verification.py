"""Cosines of pairs of embeddings, counted; TAR, FAR, thresholds, ROC and EER.

All genuine and impostor pairs of a set are counted into fine histograms, so memory does not grow
with the number of pairs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..arrays import F32, F64, I64

BINS = 1 << 20  # over cosine -1..1: thresholds of counted pairs are exact to 2e-6

FARS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)  # false accept rates that reports show

_BLOCK = 1 << 22  # scores computed at once

_ROWS = 1 << 14  # embeddings converted to float64 at once

_ROUNDING = 1e-9  # relative: 1e-5 * 300,000 must allow 3 impostors, whatever its last bit is


@dataclass(frozen=True)
class Scores:
    """Genuine and impostor pairs counted by cosine.

    Attributes:
        genuine: Pairs of one person in each cosine bin, `(BINS,) int64`.
        impostor: Pairs of two people in each cosine bin, `(BINS,) int64`.
    """

    genuine: I64
    impostor: I64

    @cached_property
    def genuine_pairs(self) -> int:
        """Number of genuine pairs."""
        return int(self.genuine.sum())

    @cached_property
    def impostor_pairs(self) -> int:
        """Number of impostor pairs."""
        return int(self.impostor.sum())

    @cached_property
    def highest_impostors(self) -> I64:
        """Impostor pairs in the highest 1, 2, ... bins, `(BINS,) int64`."""
        return np.cumsum(self.impostor[::-1])


@dataclass(frozen=True, eq=False)
class ScoreList:
    """Genuine and impostor pairs listed: for sets small enough to hold every cosine.

    Attributes:
        genuine: Cosines of the pairs of one person, `(G,)`.
        impostor: Cosines of the pairs of two people, `(I,)`.
    """

    genuine: F32 | F64
    impostor: F32 | F64

    @cached_property
    def sorted_impostors(self) -> F32 | F64:
        """Cosines of the impostor pairs, ascending, `(I,)`."""
        ascending = self.impostor.copy()
        ascending.sort()
        return ascending

    @property
    def genuine_pairs(self) -> int:
        """Number of genuine pairs."""
        return len(self.genuine)

    @property
    def impostor_pairs(self) -> int:
        """Number of impostor pairs."""
        return len(self.impostor)


@dataclass(frozen=True)
class ScoreBlock:
    """Cosines of a rectangle of pairs; each pair of faces is in one block once.

    Attributes:
        row: Index of the first face of the rows.
        column: Index of the first face of the columns.
        cosine: Cosines `(r, c) float32` of faces `row..row+r` with `column..column+c`.
        genuine: Which pairs are of one person, `(r, c) bool`; None where all are impostors.
        impostor: Which pairs are of two people, `(r, c) bool`; None where all are.
    """

    row: int
    column: int
    cosine: F32
    genuine: npt.NDArray[np.bool_] | None
    impostor: npt.NDArray[np.bool_] | None


def normalise(embeddings: F32) -> F32:
    """Embeddings scaled to unit length.

    Args:
        embeddings: `(N, D) float32`; a zero embedding stays zero.

    Returns:
        `(N, D) float32`.
    """
    length = np.linalg.norm(embeddings, axis=1, keepdims=True)
    out: F32 = (embeddings / np.maximum(length, 1e-12)).astype(np.float32)
    return out


def cosines(a: F32 | F64, b: F32 | F64) -> F64:
    """Cosine of each row of one array with the same row of another, computed in float64.

    Args:
        a: Embeddings `(N, D)` of any length.
        b: Embeddings `(N, D)` of any length.

    Returns:
        `(N,) float64`; 0 where a row has length 0 or is not finite.
    """
    out = np.zeros(len(a), np.float64)
    for start in range(0, len(a), _ROWS):
        x, y = (rows[start : start + _ROWS].astype(np.float64) for rows in (a, b))
        with np.errstate(all="ignore"):
            lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
            dots = np.einsum("nd,nd->n", x, y)
        usable = (lengths > 0) & np.isfinite(dots) & np.isfinite(lengths)
        np.divide(dots, lengths, out=out[start : start + _ROWS], where=usable)
    return out


def count_scores(cosine: F32 | F64, same: npt.NDArray[np.bool_]) -> Scores:
    """Count the pairs of a list.

    Args:
        cosine: Cosines of P pairs, `(P,)`.
        same: Whether each pair is of one person, `(P,) bool`.
    """
    index = cosine_bins(cosine.astype(np.float32))
    return Scores(
        np.bincount(index[same], minlength=BINS).astype(np.int64),
        np.bincount(index[~same], minlength=BINS).astype(np.int64),
    )


def score_blocks(unit: F32, person: I64, probes: F32 | None = None) -> Iterator[ScoreBlock]:
    """Cosines of all pairs, a few million at a time.

    Args:
        unit: Embeddings `(N, D) float32` of unit length.
        person: Identity of each, `(N,) int64`, sorted.
        probes: Embeddings `(N, D) float32` of the same faces by another network; the later face
            of a pair is taken from them.
    """
    probes = unit if probes is None else probes
    rows = max(1, _BLOCK // max(1, len(unit)))
    for start in range(0, len(unit), rows):
        stop = min(start + rows, len(unit))
        # Columns beyond this one hold other people only: no mask is needed.
        edge = int(np.searchsorted(person, person[stop - 1], side="right"))
        near = unit[start:stop] @ probes[start:edge].T
        later = np.triu(np.ones(near.shape, bool), 1)
        same = person[start:stop, None] == person[None, start:edge]
        yield ScoreBlock(start, start, near, later & same, later & ~same)
        if edge < len(unit):
            yield ScoreBlock(start, edge, unit[start:stop] @ probes[edge:].T, None, None)


def all_pairs(embeddings: F32, labels: Sequence[int] | I64, probes: F32 | None = None) -> Scores:
    """Count every pair of faces.

    Args:
        embeddings: `(N, D) float32` of any length.
        labels: Identity of each, `(N,)`; pairs with equal labels are genuine.
        probes: Embeddings `(N, D) float32` of the same faces by another network; one face of each
            pair, the later one in label order, is taken from them.
    """
    order = np.argsort(labels, kind="stable")
    unit, person = normalise(embeddings)[order], np.asarray(labels, np.int64)[order]
    other = None if probes is None else normalise(probes)[order]
    genuine, impostor = np.zeros(BINS, np.int64), np.zeros(BINS, np.int64)
    for block in score_blocks(unit, person, other):
        index = cosine_bins(block.cosine)
        if block.genuine is None or block.impostor is None:
            impostor += np.bincount(index.ravel(), minlength=BINS)
        else:
            genuine += np.bincount(index[block.genuine], minlength=BINS)
            impostor += np.bincount(index[block.impostor], minlength=BINS)
    return Scores(genuine, impostor)


def allowed_impostors(far: float, pairs: float) -> int:
    """How many impostor pairs a false accept rate lets pass.

    Args:
        far: False accept rate, 0 to 1.
        pairs: Number of impostor pairs.
    """
    return int(far * pairs * (1 + _ROUNDING))


def threshold_at_far(scores: Scores | ScoreList, far: float) -> float | None:
    """The lowest cosine threshold whose false accept rate is at most `far`.

    A pair is accepted when its cosine is the threshold or more.

    Args:
        scores: Counted pairs, for a threshold exact to 2e-6, or listed ones, for an exact one.
        far: False accept rate, 0 to 1.

    Returns:
        The threshold; None with fewer than 1 / far impostor pairs, which cannot show this rate.
    """
    allowed = allowed_impostors(far, scores.impostor_pairs)
    if allowed < 1:
        return None
    if isinstance(scores, Scores):
        bins = int(np.searchsorted(scores.highest_impostors, allowed, side="right"))
        return 1.0 - 2.0 * bins / BINS
    if allowed >= scores.impostor_pairs:
        return -1.0
    highest_refused = scores.sorted_impostors[-allowed - 1]
    return float(np.nextafter(highest_refused, scores.impostor.dtype.type(2)))


def tar_at_far(scores: Scores | ScoreList, far: float) -> float | None:
    """The share of genuine pairs accepted at a false accept rate.

    Args:
        scores: Counted or listed pairs.
        far: False accept rate, 0 to 1.

    Returns:
        A fraction; None where the pairs cannot show this rate.
    """
    threshold = threshold_at_far(scores, far)
    if threshold is None or not scores.genuine_pairs:
        return None
    return rates_at(scores, threshold)[0]


def rates_at(scores: Scores | ScoreList, threshold: float) -> tuple[float, float]:
    """True and false accept rate of a threshold.

    Args:
        scores: Counted or listed pairs.
        threshold: Cosine from which a pair is accepted.

    Returns:
        TAR and FAR as fractions; 0 where there is no pair.
    """
    if isinstance(scores, Scores):
        first = round((threshold + 1.0) / 2.0 * BINS)
        accepted = scores.genuine[first:].sum(), scores.impostor[first:].sum()
    else:
        accepted = (scores.genuine >= threshold).sum(), (scores.impostor >= threshold).sum()
    return (
        float(accepted[0]) / max(1, scores.genuine_pairs),
        float(accepted[1]) / max(1, scores.impostor_pairs),
    )


def far_name(far: float) -> str:
    """How reports name a false accept rate: `0.0001` is `1e-4`.

    Args:
        far: False accept rate, 0 to 1.
    """
    return np.format_float_scientific(far, trim="-", exp_digits=1)


def roc(scores: Scores) -> dict[str, list[float]]:
    """The receiver operating characteristic.

    Args:
        scores: Counted pairs.

    Returns:
        `far`, from 1 down to the smallest that the impostor pairs resolve, and `tar` at each.
    """
    smallest = max(1e-6, 1.0 / max(1, scores.impostor_pairs))
    rates = [float(far) for far in np.geomspace(1.0, smallest, 61)]
    points = [(far, tar_at_far(scores, far)) for far in rates]
    resolved = [(far, tar) for far, tar in points if tar is not None]
    return {"far": [far for far, _ in resolved], "tar": [tar for _, tar in resolved]}


def equal_error_rate(scores: Scores) -> float:
    """The error rate at the threshold where false accepts and false rejects are equally frequent.

    Args:
        scores: Counted pairs.

    Returns:
        A fraction.
    """
    far = scores.highest_impostors[::-1] / max(1, scores.impostor_pairs)
    frr = (np.cumsum(scores.genuine) - scores.genuine) / max(1, scores.genuine_pairs)
    at = int(np.argmin(np.abs(far - frr)))
    return float((far[at] + frr[at]) / 2)


def cosine_bins(cosine: F32) -> npt.NDArray[np.intp]:
    """The bins in which `Scores` counts cosines.

    Args:
        cosine: Cosines of any shape, float32.

    Returns:
        Numbers of the same shape, 0 at cosine -1 to `BINS` - 1 at cosine 1.
    """
    scaled = cosine * np.float32(BINS / 2)
    scaled += np.float32(BINS / 2)
    index: npt.NDArray[np.intp] = scaled.astype(np.intp)
    return np.clip(index, 0, BINS - 1, out=index)
