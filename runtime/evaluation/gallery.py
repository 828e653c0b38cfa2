"""Another network's gallery, on purpose: may people enrolled with the teacher stay?"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...arrays import F32
from ...documents import to_builtins
from ...faces.sources import Faces
from ...metrics.comparison import rates_by_name
from ...metrics.rates import RateChange, compare_rates
from ...metrics.verification import FARS, all_pairs
from .embeddings_file import Embeddings, read_embeddings
from .gates import FAR, Limits, mixed_advice


@dataclass(frozen=True)
class GalleryMigration:
    """The teacher's embeddings `of` a file against the engine's. `rates` has each alone, `mixed`
    the teacher's faces enrolled and the engine's as probes; `advice` as `judge.mixed_advice`."""

    of: str
    made_by: dict[str, Any] | None
    rates: tuple[RateChange, ...]
    mixed: tuple[RateChange, ...]
    advice: dict[str, str | float] | None

    def to_json(self) -> dict[str, Any]:
        return {
            "file": self.of,
            "made_by": self.made_by,
            "tar": to_builtins(rates_by_name(self.rates)),
            "mixed_gallery": to_builtins(rates_by_name(self.mixed)),
            "gallery": self.advice,
        }


def match_gallery(file: Path, faces: Faces, engine: F32, limits: Limits) -> GalleryMigration:
    """Embeddings of `faces` in `file`, by any network, against the engine's `(N, D)`.

    Raises FacesError when the file is not of these faces or holds embeddings of another size,
    ModelError when one is zero or not finite.
    """
    held: Embeddings = read_embeddings(file, faces.keys, engine.shape[1])
    labels, fars = np.asarray(faces.labels, np.int64), (*FARS, limits.far or FAR)
    alone = all_pairs(held.rows, labels)
    mixed = compare_rates(alone, all_pairs(held.rows, labels, engine), fars)
    return GalleryMigration(
        file.name,
        held.origin.to_json() if held.origin else None,
        tuple(compare_rates(alone, all_pairs(engine, labels), fars)),
        tuple(mixed),
        mixed_advice(limits, mixed),
    )
