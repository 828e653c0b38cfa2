"""How well embeddings tell people apart, as one number with its uncertainty.

d' (decidability, J. Daugman 2000) is the distance between the mean genuine and the mean impostor
cosine in units of their spread: (mg - mi) / sqrt((vg + vi) / 2). It moves smoothly where the area
under the ROC is already 1. Knows arrays only.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..arrays import F64

_FLOOR = 1e-12


@dataclass(frozen=True)
class PairSums:
    """Scores of all pairs, summed per pair of identities: `count`, `total`, `squares` `(I, I)`.

    The diagonal holds the genuine pairs, what is above it the impostors.
    """

    count: F64
    total: F64
    squares: F64


def pair_sums(embeddings: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> PairSums:
    """All pairs of `(N, D)` embeddings; `labels (N,)`, 0..I-1. A zero embedding scores 0."""
    x = embeddings.astype(np.float64)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), _FLOOR)
    scores = x @ x.T
    later = np.triu(np.ones(scores.shape), 1)
    member = np.eye(labels.max() + 1)[labels]  # (N, I)

    def grouped(values: F64) -> F64:
        by_pair: F64 = member.T @ (values * later) @ member
        both = by_pair + by_pair.T - np.diag(np.diag(by_pair))  # who comes first does not matter
        upper: F64 = np.triu(both)
        return upper

    return PairSums(grouped(np.ones_like(scores)), grouped(scores), grouped(scores**2))


def d_prime(sums: PairSums, weights: F64 | None = None) -> float:
    """d', each identity counting `weights (I,)` times; 0 where the spread is none."""
    w = np.ones(len(sums.count)) if weights is None else weights
    inside, between = np.diag(w), np.triu(np.outer(w, w), 1)

    def moments(use: F64) -> tuple[float, float]:
        n = max(float((sums.count * use).sum()), 1.0)
        mean = float((sums.total * use).sum()) / n
        return mean, max(float((sums.squares * use).sum()) / n - mean**2, 0.0)

    (genuine, spread), (impostor, other) = moments(inside), moments(between)
    both = ((spread + other) / 2) ** 0.5
    return (genuine - impostor) / both if both > _FLOOR else 0.0


def d_prime_lead(
    best: PairSums, other: PairSums, draws: int = 200, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of d'(best) - d'(other), identities drawn anew with replacement, in pairs."""
    count = len(best.count)
    random = np.random.default_rng(seed)
    gaps = []
    for _ in range(draws):
        w = np.bincount(random.integers(0, count, count), minlength=count).astype(np.float64)
        gaps.append(d_prime(best, w) - d_prime(other, w))
    low, high = np.quantile(gaps, [0.025, 0.975])
    return float(low), float(high)
