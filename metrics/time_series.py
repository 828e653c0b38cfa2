"""95 % intervals of the mean and the quantiles of a series whose values depend on earlier ones.

Batch means (Law and Carson, "A sequential procedure for determining the length of a steady-state
simulation", Operations Research 27 (1979)): the series is cut into batches that grow until their
means look independent, neighbours and sums over 16 of them; what is left of their
correlation, and longer batches, widen the interval.
A quantile's interval is that of the share of values below it (Wilson's with continuity correction,
Newcombe, Statistics in Medicine 17 (1998)) for as many independent values as the batches show.

Where a series drifts, or is too short for its memory, there is no interval. Noise that lasts longer
than the series cannot be seen. `benchmarks/timing_coverage.py` measures how often intervals hold
the truth.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..arrays import F64
from .score_intervals import Z_975, student_t

# Fewer independent values expected above a quantile than this (3.7), and not even the largest of
# all is an upper bound of it in 39 of 40 cases.
MIN_BEYOND = -math.log(1 - 0.975)

_RANK_STEPS = 4096
_MIN_BATCHES = 32
_MAX_LAG_Z = 2.0  # standard errors of the lag-1 correlation up to which batches look independent
_SPAN = 16  # neighbouring batches whose sums must vary as independent ones do
_MAX_TREND_Z = 3.5  # standard errors of the correlation with time
_MORE_LAG = 0.5  # standard errors that the lag-1 correlation may be larger
_FEW_BEYOND = 50  # independent values beyond a quantile, below which their memory is badly known
_THEORY = 1.5  # times the memory that theory knows counts: a calm run estimates it too low
_TAIL = 0.25  # beyond a quantile: so few values may all lie in a few bursts
_LONGER = (2, 4)  # times the batch size: the largest variance counts
_MAX_SKEW = 0.15  # of the mean: the batches' skewness over the root of their number
_MIN_TAIL_INDEX = 2.0  # Hill's estimate, too low by about a third: 1.5 without a variance
_TAIL_SHARE, _TAIL_VALUES = 0.05, 10  # of the values, and how many at least

Ends = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """Values in the order in which they came.

    Attributes:
        values: `(n,) float64`, n at least 1.
        memory: How many values carry as much information as an independent one, as far as theory
            knows: batches are at least as long.
    """

    values: F64
    memory: float = 1.0

    @cached_property
    def ascending(self) -> F64:
        """The values, the smallest first."""
        return np.sort(self.values)

    @cached_property
    def batch_size(self) -> int | None:
        """How many values make a batch whose mean rank looks independent of the others'.

        None where the series drifts or is too short for its memory.
        """
        return _independent_size(self._ranks, self.memory)

    @cached_property
    def rank_memory(self) -> float:
        """How many values order themselves like an independent one; infinite without a batch size."""
        if self.batch_size is None:
            return math.inf
        spread = float(self._ranks.var()) / len(self.values)
        return max(1.0, _mean_variance(self._ranks, self.batch_size) / spread) if spread else 1.0

    @cached_property
    def _ranks(self) -> F64:
        """Ranks, of a long series in steps of about a 4,096th of it.

        Equal values have equal ranks: constant work does not drift.
        """
        edges = self.ascending[:: max(1, len(self.values) // _RANK_STEPS)]
        first = np.searchsorted(edges, self.values, "left")
        last = np.searchsorted(edges, self.values, "right")
        return (first + last - 1) / 2


def make_series(values: npt.ArrayLike, memory: float = 1.0) -> Series:
    """A series of numbers.

    Args:
        values: `(n,)`, in order, n at least 1.
        memory: As `Series` has it.
    """
    return Series(np.asarray(values, np.float64), memory)


def quantile_interval(series: Series, share: float) -> Ends | None:
    """A 95 % interval of a quantile.

    Args:
        series: The values.
        share: Of the values that lie below it, 0 to 1.

    Returns:
        Its ends; None where the values do not show one.
    """
    count, beyond = len(series.values), min(share, 1 - share)
    below = (series.values <= _order(series.ascending, share)).astype(np.float64)
    size = _independent_size(below, series.memory)
    if size is None or series.batch_size is None:
        return None
    size = max(size, series.batch_size)
    memory = max(1.0, _mean_variance(below, size) / (share * (1 - share) / count))
    if size > 1 and beyond < _TAIL and _comes_in_bursts(below, size, share, count / memory):
        return None
    if count / memory * beyond < _FEW_BEYOND:
        memory = max(memory, math.sqrt(memory * series.rank_memory), series.memory)
    shown = 1.0 if size == 1 else max(memory, series.rank_memory)
    if series.memory > 1:  # which is itself an estimate, the smaller the calmer the series was
        shown = max(shown, _THEORY * series.memory)
        memory = max(memory, _THEORY * series.memory)
    if count / shown * beyond < MIN_BEYOND:
        return None
    low, high = _wilson(share, count / memory)
    return _order(series.ascending, low), _order(series.ascending, high)


def mean_interval(series: Series) -> Ends | None:
    """A 95 % interval of the mean.

    Johnson's correction for skewness (Journal of the American Statistical Association 73 (1978))
    shifts it. Tails so heavy that a few values decide the mean have none (Hill's estimate of the
    tail's index, Annals of Statistics 3 (1975)).

    Args:
        series: The values.

    Returns:
        Its ends; None where the values do not show one.
    """
    values = series.values
    size = _independent_size(values, series.memory)
    if size is None or series.batch_size is None:
        return None
    size = max(size, series.batch_size)
    error = math.sqrt(_mean_variance(values, size))
    mean = float(values.mean())
    if error == 0:
        return mean, mean
    batches = _batch_means(values, size)
    skew = _skewness(batches) / math.sqrt(len(batches))
    # Few batches bound their own skewness: that of the values tells of rarer ones.
    alone = _skewness(values) * math.sqrt(size / len(values))
    if max(abs(skew), abs(alone)) > _MAX_SKEW or _tail_index(values) < _MIN_TAIL_INDEX:
        return None
    center = mean + skew * error * (1 + 2 * Z_975**2) / 6
    return center - Z_975 * error, center + Z_975 * error


def _batch_means(values: F64, size: int) -> F64:
    """Means of batches of that size; what is left over at the begin belongs to none."""
    number = len(values) // size
    means: F64 = values[len(values) - number * size :].reshape(number, size).mean(axis=1)
    return means


def _comes_in_bursts(below: F64, size: int, share: float, count: float) -> bool:
    """Whether a few batches hold most of what lies beyond a quantile: their means are more skewed
    than the mean of so many independent values is.
    """
    batches = _batch_means(below, size)
    skew = abs(_skewness(batches)) / math.sqrt(len(batches))
    return skew - abs(1 - 2 * share) / math.sqrt(share * (1 - share) * count) > _MAX_SKEW


def _lag_correlation(values: F64) -> float:
    """Correlation of neighbours, with its bias of 1/n added back."""
    around = values - values.mean()
    squares = float(around @ around)
    return 0.0 if squares == 0 else float(around[:-1] @ around[1:]) / squares + 1 / len(values)


def _drifts(values: F64) -> bool:
    time = np.arange(len(values)) - (len(values) - 1) / 2
    around = values - values.mean()
    scale = math.sqrt(float(time @ time) * float(around @ around))
    return scale > 0 and abs(float(time @ around)) / scale * math.sqrt(len(values)) > _MAX_TREND_Z


def _independent_size(values: F64, memory: float) -> int | None:
    size = max(1, math.ceil(memory)) if math.isfinite(memory) else len(values) + 1
    while len(values) // size >= _MIN_BATCHES:
        means = _batch_means(values, size)
        if max(_lag_correlation(means) * math.sqrt(len(means)), _sums_z(means)) <= _MAX_LAG_Z:
            return None if _drifts(means) else size
        size *= 2
    return None


def _sums_z(values: F64) -> float:
    """How much more sums of neighbours vary than those of independent values, in standard errors.

    The variance ratio of Lo and MacKinlay (Review of Financial Studies 1 (1988)) over `_SPAN` values,
    which sees a weak correlation that lasts; 0 with too few values to tell.
    """
    count, around = len(values), values - values.mean()
    squares = float(around @ around)
    if not squares or count < _SPAN**2:
        return 0.0
    total = np.concatenate([[0.0], np.cumsum(around)])
    sums = total[_SPAN:] - total[:-_SPAN]
    scale = _SPAN * (count - _SPAN + 1) * (1 - _SPAN / count) / (count - 1)
    error = math.sqrt(2 * (2 * _SPAN - 1) * (_SPAN - 1) / (3 * _SPAN * count))
    return (float(sums @ sums) / squares / scale - 1) / error


def _mean_variance(values: F64, size: int) -> float:
    """Variance of the mean, made larger so that `Z_975` standard errors are Student's interval."""
    means = _batch_means(values, size)
    left = max(0.0, _lag_correlation(means) + _MORE_LAG / math.sqrt(len(means)))
    estimates = [_scaled_variance(means) * (1 + left) / (1 - left)]
    if size > 1:
        estimates += [_scaled_variance(_batch_means(values, size * times)) for times in _LONGER]
    return max(estimates)


def _scaled_variance(means: F64) -> float:
    return float(means.var(ddof=1)) / len(means) * (student_t(len(means) - 1) / Z_975) ** 2


def _wilson(share: float, count: float) -> Ends:
    """Wilson's interval of a share among so many independent values, with continuity correction."""
    square, rest = Z_975**2, 1 - share
    middle, scale = 2 * count * share + square, 2 * (count + square)
    low = square - 2 - 1 / count + 4 * share * (count * rest + 1)
    high = square + 2 - 1 / count + 4 * share * (count * rest - 1)
    return (
        max(0.0, (middle - 1 - Z_975 * math.sqrt(max(0.0, low))) / scale),
        min(1.0, (middle + 1 + Z_975 * math.sqrt(max(0.0, high))) / scale),
    )


def _order(ascending: F64, share: float) -> float:
    """The value at a share of the order; linear between two."""
    place = min(max(share * len(ascending) - 0.5, 0.0), len(ascending) - 1.0)
    rank = min(int(place), len(ascending) - 2)
    return float(ascending[rank] + (place - rank) * (ascending[rank + 1] - ascending[rank]))


def _skewness(values: F64) -> float:
    around = values - values.mean()
    spread = float((around**2).mean())
    return 0.0 if spread == 0 else float((around**3).mean()) / spread**1.5


def _tail_index(values: F64) -> float:
    """Hill's estimate for the distances from the median."""
    distance = np.sort(np.abs(values - np.median(values)))[::-1]
    number = round(_TAIL_SHARE * len(values))
    if number < _TAIL_VALUES:  # too few to tell
        return math.inf
    if distance[number] <= 0:
        return math.inf if distance[0] <= 0 else 0.0
    excess = float(np.log(distance[:number] / distance[number]).mean())
    return math.inf if excess <= 0 else 1 / excess
