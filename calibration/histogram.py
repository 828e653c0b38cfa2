"""Running histograms of absolute values: what calibration keeps of the activations.

Memory does not grow with the number of faces: a histogram has a fixed number of bins, and doubles
its bin width when a larger value comes.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

BINS = 4096
"""Fine enough that a bin is well under one INT8 step (1/127 of the range), and twice so after a
doubling."""


@dataclass
class Histogram:
    """Counts of |x| in `BINS` equal bins of `width`; bin i covers [i * width, (i + 1) * width)."""

    width: float = 0.0
    peak: float = 0.0
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """Count values of any shape; they must be finite."""
        magnitude = np.abs(values.ravel())
        peak = float(magnitude.max(initial=0.0))
        if peak > 0.0 and self.width == 0.0:
            self.counts[0], zeros = 0, self.counts[0]
            self.width = peak / BINS * (1 + 1e-6)
            self.counts[0] = zeros
        while peak >= self.width * BINS and peak > 0.0:
            self.counts = np.concatenate(
                [self.counts.reshape(-1, 2).sum(axis=1), np.zeros(BINS // 2, np.int64)]
            )
            self.width *= 2.0
        self.peak = max(self.peak, peak)
        scale = np.float32(1.0 / self.width) if self.width else np.float32(0.0)
        index = np.minimum((magnitude * scale).astype(np.int32), BINS - 1)
        self.counts += np.bincount(index, minlength=BINS)

    @property
    def centres(self) -> npt.NDArray[np.float64]:
        """`(BINS,) float64`, the middle of each bin."""
        return (np.arange(BINS) + 0.5) * self.width
