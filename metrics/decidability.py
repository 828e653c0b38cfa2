"""How well embeddings separate people, as one number with its uncertainty.

d' (decidability; J. Daugman, 2000) is the distance between the mean genuine and the mean impostor
cosine in units of their spread: (mg - mi) / sqrt((vg + vi) / 2). It still moves smoothly where the
area under the ROC is already 1.
"""

from dataclasses import dataclass

import numpy as np

from ..arrays import F32, F64, I64

SEPARATES = 1.5  # d' below this is no recognition: about 23 % equal error rate for normal scores

_BEYOND_DOUBT = 1.96  # standard errors: half a 95 % interval
SAME_CONTRACT = 0.01  # of d': contracts that differ by less, 127.5 and 128, may count as one

_EPSILON = 1e-12


@dataclass(frozen=True, eq=False)
class PairSums:
    """Cosines of all pairs, summed per pair of identities.

    The diagonal holds the genuine pairs, the upper triangle the impostors.

    Attributes:
        count: Number of pairs, `(I, I)`.
        total: Sum of their cosines, `(I, I)`.
        squares: Sum of their squared cosines, `(I, I)`.
    """

    count: F64
    total: F64
    squares: F64


def pair_sums(embeddings: F32, labels: I64) -> PairSums:
    """Sum the cosines of all pairs.

    Args:
        embeddings: `(N, D) float32`; a zero embedding scores 0.
        labels: Identity of each face, `(N,) int64`, 0..I-1.
    """
    x = embeddings.astype(np.float64)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), _EPSILON)
    scores = x @ x.T
    later = np.triu(np.ones(scores.shape), 1)
    member = np.eye(labels.max() + 1)[labels]  # (N, I)

    def grouped(values: F64) -> F64:
        by_pair: F64 = member.T @ (values * later) @ member
        both = by_pair + by_pair.T - np.diag(np.diag(by_pair))  # the order of a pair is irrelevant
        upper: F64 = np.triu(both)
        return upper

    return PairSums(grouped(np.ones_like(scores)), grouped(scores), grouped(scores**2))


def d_prime(sums: PairSums, weights: F64 | None = None) -> float:
    """Decidability d'.

    Args:
        sums: Of all pairs.
        weights: How often each identity counts, `(I,)`; once by default.

    Returns:
        d'; 0 where the cosines have no spread.
    """
    w = np.ones(len(sums.count)) if weights is None else weights
    return float(_d_primes(sums, w[None])[0])


def mean_impostor(sums: PairSums) -> float:
    """Mean cosine of pairs of different people.

    Args:
        sums: Of all pairs.

    Returns:
        The mean; 0 without such pairs.
    """
    return float(np.triu(sums.total, 1).sum() / max(np.triu(sums.count, 1).sum(), 1.0))


def d_prime_lead(
    best: PairSums, other: PairSums, draws: int = 200, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of d'(best) - d'(other): paired bootstrap over identities.

    Args:
        best: Sums by one embedding of the faces.
        other: Sums by another embedding of the same faces.
        draws: Replicates.
        seed: Of the random generator.

    Returns:
        `(low, high)`.
    """
    count = len(best.count)
    drawn = np.random.default_rng(seed).integers(0, count, (draws, count))
    weights = (drawn[:, :, None] == np.arange(count)).sum(axis=1).astype(np.float64)
    gaps = _d_primes(best, weights) - _d_primes(other, weights)
    low, high = np.quantile(gaps, [0.025, 0.975])
    return float(low), float(high)


def lead_in_errors(best: PairSums, other: PairSums) -> float:
    """By how much embeddings separate people better than others do, in standard errors over people.

    Args:
        best: Sums by the embeddings in question.
        other: Sums by other embeddings of the same faces.

    Returns:
        What the lead of d' has above `SAME_CONTRACT`, over its standard error; minus infinity where
        the embeddings in question do not tell the people apart (`SEPARATES`).
    """
    if d_prime(best) < SEPARATES:
        return -np.inf
    low, high = d_prime_lead(best, other)
    error = max((high - low) / (2 * _BEYOND_DOUBT), _EPSILON)
    return ((low + high) / 2 - SAME_CONTRACT * d_prime(other)) / error


def separates_better(best: PairSums, other: PairSums) -> bool:
    """Whether embeddings separate people better than others do, beyond doubt.

    Args:
        best: Sums by the embeddings in question.
        other: Sums by other embeddings of the same faces.

    Returns:
        True where they tell the people apart at all (`SEPARATES`), and the 95 % interval of their lead
        lies above `SAME_CONTRACT`.
    """
    return lead_in_errors(best, other) > _BEYOND_DOUBT


def _d_primes(sums: PairSums, weights: F64) -> F64:
    """d' for weights of the identities, `(B, I)`: `(B,)`."""

    def total(values: F64) -> tuple[F64, F64]:
        """Over genuine and over impostor pairs."""
        impostor: F64 = ((weights @ np.triu(values, 1)) * weights).sum(axis=1)
        return weights @ np.diag(values), impostor

    sides = zip(total(sums.count), total(sums.total), total(sums.squares), strict=True)
    (genuine, genuine_variance), (impostor, impostor_variance) = (
        _moments(np.maximum(count, 1.0), values, squares) for count, values, squares in sides
    )
    spread = np.sqrt((genuine_variance + impostor_variance) / 2)
    told = spread > _EPSILON
    figures: F64 = np.where(told, (genuine - impostor) / np.where(told, spread, 1.0), 0.0)
    return figures


def _moments(count: F64, total: F64, squares: F64) -> tuple[F64, F64]:
    """Mean and variance."""
    mean = total / count
    return mean, np.maximum(squares / count - mean**2, 0.0)
