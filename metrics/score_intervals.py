"""Score intervals of shares, and quantiles where few people show a variance."""

import numpy as np

from ..arrays import F64

Z_975 = 1.959964  # quantile .975 of the normal distribution

_T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)  # Student (1908)

_STEPS = 40  # of bisection: interval ends to 1e-12


def influence_freedom(influence: F64) -> int:
    """Degrees of freedom of a variance that is the sum of squared influences of people.

    By the fourth moment of the influences (Satterthwaite, 1946): few when a few people make up most
    of the variance.

    Args:
        influence: Of each person, `(P,)`.

    Returns:
        1 to P.
    """
    squares = influence**2
    people, total = len(squares), float(squares.sum())
    if not total:
        return max(1, people)
    share = float((squares**2).sum()) / total**2
    return max(1, min(people, int(2 / max(share - 1 / people, 2 / people))))


def score_interval(
    rate: float, design: float, logit_variance: float = 0.0, quantile: float = Z_975
) -> tuple[float, float]:
    """A score interval of a rate (Wilson, 1927): its variance is that of the rate in question.

    Args:
        rate: The measured rate p, 0 to 1.
        design: Its variance over p (1 - p).
        logit_variance: Variance of log(p / (1 - p)) from another source, such as a threshold.
        quantile: Half the interval, in standard deviations.

    Returns:
        `(low, high)`, the rates from which `rate` is at most `quantile` standard deviations away.
    """

    def holds(p: float) -> bool:
        u = p * (1 - p)
        return (rate - p) ** 2 <= quantile**2 * (u * design + u * u * logit_variance)

    ends = []
    for outside in (0.0, 1.0):
        inside, beyond = rate, outside
        for _ in range(_STEPS):
            middle = (inside + beyond) / 2
            inside, beyond = (middle, beyond) if holds(middle) else (inside, middle)
        ends.append(inside)
    return ends[0], ends[1]


def student_t(freedom: int) -> float:
    """Quantile .975 of Student's t distribution.

    Args:
        freedom: Degrees of freedom, 1 or more; above 10 by the expansion of Fisher and Cornish
            (1960), exact to .001.
    """
    if freedom <= len(_T_975):
        return _T_975[freedom - 1]
    z, n = Z_975, freedom
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / n + second / n**2 + third / n**3


def share_logit(share: float, count: int) -> float:
    """The logit of a share, half a pair away from 0 and 1 at the least.

    Args:
        share: 0 to 1.
        count: Pairs that it is a share of.
    """
    share = min(max(share, 0.5 / count), 1 - 0.5 / count)
    return float(np.log(share / (1 - share)))
