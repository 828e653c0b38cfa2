"""What INT8 may lose, and whether it was shown on held-out people that it loses no more.

A drop of TAR is kept when the upper ends of two 95 % intervals over people are within the limit:
that of the drop that as many other people would count, and that of the smoothed drop. Where one
is missing or holds the limit, the people cannot judge the budget, and that is what is answered.
"""

from dataclasses import dataclass, replace
from math import ceil, sqrt

import numpy as np

from ...arrays import F32, I64
from ...errors import FacesError, UsageError
from ...metrics.intervals import MIN_ACCEPTED, tar_intervals
from ...metrics.person_variance import FEW_PEOPLE, Ends
from ...metrics.rates import EmbeddingLoss, RateChange, compare_embeddings
from ...metrics.verification import all_pairs, allowed_impostors

KEPT, EXCEEDED, CANNOT_JUDGE = "kept", "exceeded", "cannot judge"

MAX_JUDGED_FACES = 2048  # all of their pairs are listed: 2 million, 25 of them above FAR 1e-5


@dataclass(frozen=True)
class Budget:
    """What INT8 may lose; None sets no limit.

    Attributes:
        max_tar_drop: Loss of TAR at `far` on other people, as a fraction.
        min_cosine: Cosine with the float embedding that every judged face must keep.
        far: False accept rate of `max_tar_drop`.
    """

    max_tar_drop: float | None = None
    min_cosine: float | None = None
    far: float = 1e-4

    def __post_init__(self) -> None:
        if self.max_tar_drop is None and self.min_cosine is None:
            raise UsageError("an accuracy budget is a TAR drop or a cosine", "--max-tar-drop 0.003")
        if self.max_tar_drop is not None and not 0 <= self.max_tar_drop <= 1:
            raise UsageError(f"--max-tar-drop is a share, 0 to 1, found {self.max_tar_drop}")
        if self.min_cosine is not None and not -1 <= self.min_cosine <= 1:
            raise UsageError(f"--min-cosine is a cosine, -1 to 1, found {self.min_cosine}")
        if not 0 < self.far < 1:
            raise UsageError(f"--far is a rate between 0 and 1, found {self.far}", "--far 1e-4")

    def verdict(self, loss: EmbeddingLoss) -> str:
        """Whether a loss is within the budget.

        Args:
            loss: On held-out people.

        Returns:
            "kept", "exceeded", or "cannot judge" where the people do not suffice to tell.
        """
        if self.min_cosine is not None and loss.cosine.min < self.min_cosine:
            return EXCEEDED
        if self.max_tar_drop is None:
            return KEPT
        intervals = _drop_intervals(loss.at(self.far))
        if any(low > self.max_tar_drop for low, _ in intervals):
            return EXCEEDED
        kept = [high <= self.max_tar_drop for _, high in intervals]
        return KEPT if len(kept) == 2 and all(kept) else CANNOT_JUDGE

    def holds(self, loss: EmbeddingLoss) -> bool:
        """Whether it was shown that a loss is within the budget."""
        return self.verdict(loss) == KEPT

    def describe(self) -> str:
        """The budget as text."""
        parts = []
        if self.max_tar_drop is not None:
            parts.append(f"TAR drop <= {self.max_tar_drop:g} at FAR {self.far:g}")
        if self.min_cosine is not None:
            parts.append(f"cosine >= {self.min_cosine:g}")
        return " and ".join(parts)

    def describe_loss(self, loss: EmbeddingLoss) -> str:
        """What the budget limits of a loss, as text."""
        text = f"cosine {loss.cosine.min:.4f}"
        rate = loss.at(self.far)
        if rate is None:
            return text
        text += f", TAR drop {rate.drop:+.4f}"
        if interval := rate.interval_95:
            text += f" ({-interval.delta[1]:+.4f} to {-interval.delta[0]:+.4f})"
        if likely := rate.smoothed_drop_interval_95:
            text += f", likely {rate.smoothed_drop:+.4f} ({likely[0]:+.4f} to {likely[1]:+.4f})"
        return text

    def cure(self, loss: EmbeddingLoss) -> str:
        """What would let the budget be judged.

        Args:
            loss: One whose verdict is "cannot judge".

        Returns:
            A hint for people.
        """
        if loss.faces >= MAX_JUDGED_FACES:
            return f"allow more, or a larger --far: more than {MAX_JUDGED_FACES} faces do not judge"
        times = self._more_people(loss.at(self.far))
        count = f"about {times:.1f} times as many" if times > 1 else "more"
        return f"give {count} people with several images each, allow more, or a larger --far"

    def _more_people(self, rate: RateChange | None) -> float:
        """How many times the people let both intervals end at the limit; 0 where none would."""
        times = []
        for low, high in _drop_intervals(rate):
            room = (self.max_tar_drop or 0.0) - (low + high) / 2
            times.append(((high - low) / 2 / room) ** 2 if room > 0 else 0.0)
        return max(times) if times and min(times) > 0 else 0.0


def judge_loss(reference: F32, engine: F32, labels: I64, far: float | None) -> EmbeddingLoss:
    """What a budget is held against: `compare_embeddings`, with intervals of the TARs at one rate.

    Args:
        reference: Embeddings `(N, D) float32` by the float model.
        engine: Embeddings `(N, D) float32` of the same faces by the INT8 model.
        labels: Identity of each face, `(N,) int64`.
        far: The budget's false accept rate; None for no intervals.
    """
    loss = compare_embeddings(reference, engine, labels, far)
    if far is None or loss.at(far) is None:
        return loss
    scores = all_pairs(reference, labels), all_pairs(engine, labels)
    interval = tar_intervals(reference, engine, labels, scores, (far,)).get(far)
    rates = [replace(r, interval_95=interval) if r.far == far else r for r in loss.rates]
    return replace(loss, rates=tuple(rates))


def _drop_intervals(rate: RateChange | None) -> list[Ends]:
    """95 % intervals of the counted and of the smoothed drop, as far as there are any.

    The counted one's upper end is that of a prediction: as many other people scatter as much as
    those who judge, so it is the root of 2 wider. A gain by count is luck, and counts as none.
    """
    if rate is None:
        return []
    intervals = [rate.smoothed_drop_interval_95] if rate.smoothed_drop_interval_95 else []
    if rate.interval_95:
        low, high = rate.interval_95.delta
        intervals.append((-high, max(rate.drop, 0.0) + (high - low) / sqrt(2)))
    return intervals


def check_judges(labels: I64, budget: Budget) -> None:
    """Whether held-out people can judge a budget at all, before anything is computed.

    Args:
        labels: Identity of each held-out face, `(N,) int64`.
        budget: What INT8 may lose.

    Raises:
        FacesError: Too few people have two faces, or too few impostor pairs hold the rate.
    """
    if budget.max_tar_drop is None:
        return
    counts = np.unique(labels, return_counts=True)[1]
    several = int((counts > 1).sum())
    impostors = int(len(labels) * (len(labels) - 1) // 2 - (counts * (counts - 1) // 2).sum())
    needed = MIN_ACCEPTED / budget.far
    if several >= FEW_PEOPLE and allowed_impostors(budget.far, impostors) >= MIN_ACCEPTED:
        return
    faces = max(2 * FEW_PEOPLE, ceil(1 + sqrt(2 * needed)))
    raise FacesError(
        f"cannot judge {budget.describe()}: {len(labels)} held-out faces of {len(counts)} people"
        f" give {impostors:,} impostor pairs and {several} people with two faces; FAR"
        f" {budget.far:g} needs {needed:,.0f} pairs, an interval {FEW_PEOPLE} such people",
        f"hold out {faces:,} faces or more (every second person is, where enough others calibrate),"
        " or give a larger --far"
        if faces <= MAX_JUDGED_FACES
        else f"give a larger --far: more than {MAX_JUDGED_FACES:,} faces do not judge",
    )
