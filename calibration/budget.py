"""What INT8 may lose, and whether it was shown on held-out people that it loses no more.

A drop of TAR is kept when both the counted drop and the upper end of the smoothed drop's 95 %
interval over people are within the limit. Where that interval is missing or holds the limit, the
people cannot judge the budget, and that is what is answered.
"""

from dataclasses import dataclass
from math import ceil, sqrt

import numpy as np

from ..arrays import I64
from ..errors import FacesError, UsageError
from ..metrics.intervals import FEW_PEOPLE, MIN_ACCEPTED
from ..metrics.rates import EmbeddingLoss, RateChange
from ..metrics.verification import allowed_impostors

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
        rate = loss.at(self.far)
        if rate is None or rate.smoothed_drop_interval_95 is None:
            return CANNOT_JUDGE
        low, high = rate.smoothed_drop_interval_95
        if rate.drop <= self.max_tar_drop and high <= self.max_tar_drop:
            return KEPT
        return EXCEEDED if low > self.max_tar_drop else CANNOT_JUDGE

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
        if interval := rate.smoothed_drop_interval_95:
            text += f", likely {rate.smoothed_drop:+.4f} ({interval[0]:+.4f} to {interval[1]:+.4f})"
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
        """How many times the people let the interval end at the limit; 0 where none would."""
        if rate is None or not (interval := rate.smoothed_drop_interval_95):
            return 0.0
        low, high = interval
        room = (self.max_tar_drop or 0.0) - (low + high) / 2
        return ((high - low) / 2 / room) ** 2 if room > 0 else 0.0


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
