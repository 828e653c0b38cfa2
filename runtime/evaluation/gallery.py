"""Another network's gallery: may people enrolled with a teacher be matched by the engine?"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...arrays import F32
from ...faces.sources import Faces
from ...metrics.comparison import rates_by_name
from ...metrics.intervals import tar_intervals
from ...metrics.rates import RateChange, compare_rates
from ...metrics.verification import FARS, all_pairs, far_name
from .doubts import MIN_JUDGED_TAR
from .embeddings_file import EmbeddingOrigin, read_embeddings
from .judgement import judged_rate
from .limits import Limits


@dataclass(frozen=True)
class GalleryAdvice:
    """Whether people enrolled with another network may be matched by the engine.

    Attributes:
        verdict: "keep the gallery", "enrol again" or "cannot judge".
        far: The FAR by name.
        delta: Change of TAR of mixed pairs, a fraction.
        threshold: The match threshold of mixed pairs, a cosine.
        interval_95: 95 % interval of the change; None with too few people.
    """

    verdict: str
    far: str
    delta: float
    threshold: float
    interval_95: tuple[float, float] | None = None


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
    both = alone, all_pairs(teacher.rows, labels, engine)
    ends = tar_intervals(teacher.rows, engine, labels, both, fars, mixed=True)
    mixed = compare_rates(*both, fars, ends)
    mixed_gallery = rates_by_name(mixed)
    return GalleryMigration(
        file.name,
        teacher.origin,
        rates_by_name(rates),
        mixed_gallery,
        gallery_advice(limits, mixed_gallery, cannot_judge=cannot_judge),
    )


def gallery_advice(
    limits: Limits, rates: Mapping[str, RateChange], *, cannot_judge: bool = False
) -> GalleryAdvice | None:
    """May people enrolled with another network be matched by the engine, or must they enrol again?

    They may stay when mixed pairs lose no more TAR than the engine's own pairs may, by their whole 95 %
    interval.

    Args:
        limits: What the engine must satisfy.
        rates: FAR by name -> TAR of the other network alone, and of mixed pairs.
        cannot_judge: Whether the other network or the faces allow no judgement.

    Returns:
        The advice, None where the pairs are too few.
    """
    if not rates:
        return None
    mixed = judged_rate(limits, rates)
    if mixed.reference is None or mixed.delta is None or mixed.threshold.engine is None:
        return None
    ends = mixed.interval_95.delta if mixed.interval_95 else None
    if cannot_judge or mixed.reference < MIN_JUDGED_TAR or ends is None:
        verdict = "cannot judge"
    elif -ends[0] <= limits.tar_drop:
        verdict = "keep the gallery"
    else:
        verdict = "cannot judge" if -ends[1] <= limits.tar_drop else "enrol again"
    return GalleryAdvice(verdict, far_name(mixed.far), mixed.delta, mixed.threshold.engine, ends)
