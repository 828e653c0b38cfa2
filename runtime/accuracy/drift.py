"""How far the engine's embeddings moved from the reference's, face by face."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .metrics import cosines

_WORST = 12
_BINS = 40


@dataclass(frozen=True)
class Drift:
    """Cosines between reference and engine over `faces` faces.

    `edges` (one more than `counts`) and `counts` are their histogram; `worst` are the faces that
    moved most, key and cosine.
    """

    faces: int
    min: float
    p1: float
    p5: float
    median: float
    mean: float
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    worst: tuple[tuple[str, float], ...]

    def to_json(self) -> dict[str, Any]:
        numbers = ("min", "p1", "p5", "median", "mean")
        return {
            "faces": self.faces,
            **{name: round(getattr(self, name), 6) for name in numbers},
            "histogram": {"edges": list(self.edges), "counts": list(self.counts)},
        }


def measure_drift(
    reference: npt.NDArray[np.float32], engine: npt.NDArray[np.float32], keys: Sequence[str]
) -> Drift:
    """Compare `(N, D)` embeddings row by row; `keys` names the faces."""
    cosine = np.minimum(cosines(reference, engine).astype(np.float64), 1.0)
    p1, p5, median = (float(v) for v in np.percentile(cosine, (1, 5, 50)))
    floor = np.floor(cosine.min() * 100 - 1e-9) / 100
    counts, edges = np.histogram(cosine, _BINS, (floor, 1.0))
    return Drift(
        len(cosine),
        float(cosine.min()),
        p1,
        p5,
        median,
        float(cosine.mean()),
        tuple(round(float(e), 6) for e in edges),
        tuple(int(c) for c in counts),
        tuple((keys[i], round(float(cosine[i]), 6)) for i in np.argsort(cosine)[:_WORST]),
    )
