"""Another network's gallery: may people enrolled with a teacher be matched by the engine?"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...arrays import F32
from ...faces.sources import Faces
from ...metrics.comparison import rates_by_name
from ...metrics.rates import RateChange, compare_rates
from ...metrics.verification import FARS, all_pairs
from .embeddings_file import EmbeddingOrigin, read_embeddings
from .judgement import GalleryAdvice, gallery_advice
from .limits import Limits


@dataclass(frozen=True)
class GalleryMigration:
    """The teacher's embeddings against the engine's, with the shape of its JSON document.

    Attributes:
        file: Name of the file with the teacher's embeddings.
        made_by: What made them, None where the file does not record it.
        tar: FAR by name -> TAR of the teacher and of the engine, each alone.
        mixed_gallery: The same with the teacher's faces enrolled and the engine's as probes.
        gallery: Whether the gallery may stay; None where the pairs are too few.
    """

    file: str
    made_by: EmbeddingOrigin | None
    tar: Mapping[str, RateChange]
    mixed_gallery: Mapping[str, RateChange]
    gallery: GalleryAdvice | None


def compare_gallery(
    file: Path, faces: Faces, engine: F32, limits: Limits, cannot_judge: bool = False
) -> GalleryMigration:
    """Match a teacher's gallery with the engine's probes.

    Args:
        file: Embeddings of `faces` by any network, as `fr-edge embed` writes them.
        faces: N faces with known people.
        engine: The engine's embeddings, `(N, D) float32`.
        limits: The FAR, and the loss that is allowed.
        cannot_judge: Whether the faces allow no judgement.

    Raises:
        FacesError: The file is not of these faces, or holds embeddings of another size.
        ModelError: An embedding is zero or not finite.
    """
    teacher = read_embeddings(file, faces.keys, engine.shape[1])
    labels, fars = np.asarray(faces.labels, np.int64), (*FARS, limits.judged_far)
    alone = all_pairs(teacher.rows, labels)
    rates = compare_rates(alone, all_pairs(engine, labels), fars)
    mixed = compare_rates(alone, all_pairs(teacher.rows, labels, engine), fars)
    mixed_gallery = rates_by_name(mixed)
    return GalleryMigration(
        file.name,
        teacher.origin,
        rates_by_name(rates),
        mixed_gallery,
        gallery_advice(limits, mixed_gallery, cannot_judge=cannot_judge),
    )
