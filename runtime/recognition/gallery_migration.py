"""People enrolled with another engine or network: may they stay, who enrols again, at which threshold?

The answer is that of the engine's certificates. `verify` matches faces enrolled with the original
network, and with `--teacher` those of another one, with the engine's probes.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...arrays import F32
from ...errors import BundleError, FacesError
from ...metrics.identification import nearest
from ..evaluation.embeddings_file import EmbeddingOrigin
from ..evaluation.gallery import GalleryAdvice
from ..evaluation.result import VerifyResult
from .face_gallery import Gallery
from .gallery_file import GalleryModel, model_difference, read_gallery
from .match_threshold import engine_option
from .recogniser import Photograph, Recogniser

logger = logging.getLogger(__name__)

KEEP = "keep the gallery"  # as `gallery_advice` words it

_BLOCK = 1024  # enrolled faces that are compared with all at once


@dataclass(frozen=True, eq=False)
class MigratedGallery:
    """A gallery for another engine, and what is known of it.

    Attributes:
        gallery: With the new model. Faces of the old one are in it where the verdict keeps them.
        verdict: "keep the gallery", "enrol again" or "cannot judge", as `verify` found.
        far: The FAR by name at which that was judged.
        delta: Change of TAR when faces of the old model meet probes of the new one, a fraction.
        threshold: The interim match threshold of such pairs, a cosine, until all have enrolled
            again; None where no face of the old model is kept.
        enrol_again: The people who should enrol again: without the verdict to keep the gallery all
            who have no photograph; with it those whose old faces do not match one another at the
            interim threshold, or match somebody else's.
        report: The certificate's path within the bundle.
    """

    gallery: Gallery
    verdict: str
    far: str
    delta: float
    threshold: float | None
    enrol_again: tuple[str, ...]
    report: str


def migrate_gallery(
    path: str | Path,
    recogniser: Recogniser,
    photographs: Mapping[str, Sequence[Photograph]] | None = None,
) -> MigratedGallery:
    """Move a gallery to another engine or network; the file stays as it is.

    The time to compare all enrolled faces with one another grows with the square of their number.

    Args:
        path: A gallery of another model: of the original network in FP32, or of the network whose
            embeddings were given to `verify --teacher`.
        recogniser: The engine that makes the probes from now on, with a certificate.
        photographs: Person -> photographs, for those who can be enrolled again right away. A person
            with a photograph that cannot be embedded is not.

    Raises:
        FacesError: The file cannot be read, is of this model already, or holds embeddings of another
            size.
        BundleError: No certificate of this engine judges such a gallery.
    """
    old = Gallery.of_content(read_gallery(Path(path)))
    if not model_difference(old.model, recogniser.model):
        raise FacesError(f"{path} is a gallery of this model already", "`Gallery.load` reads it")
    advice, report = _advice(old.model, recogniser)
    keeps = advice.verdict == KEEP
    gallery = old.with_model(recogniser.model) if keeps else Gallery(recogniser.model)
    enrolled = _enrol(gallery, old.names, recogniser, photographs or {})
    people = set(_ambiguous(gallery, advice.threshold)) if keeps else set(old.names)
    return MigratedGallery(
        gallery,
        advice.verdict,
        advice.far,
        advice.delta,
        advice.threshold if gallery.kept else None,
        tuple(name for name in old.names if name in people - enrolled),
        report,
    )


def _advice(model: GalleryModel, recogniser: Recogniser) -> tuple[GalleryAdvice, str]:
    """The certificate's answer for galleries of a model, and the report's path."""
    answers = [
        (report.faces.impostor_pairs if report.faces else 0, advice, report.report)
        for report in recogniser.certificates()
        if (advice := _answer(report, model, recogniser.model)) is not None
    ]
    if answers:
        _, advice, file = max(answers, key=lambda answer: answer[0])
        return advice, file
    root, engine = recogniser.bundle.root, engine_option(recogniser.session)
    own = _same_network(model.network, recogniser.model.network) and model.precision == "fp32"
    teacher = "" if own else " --teacher FILE.npz"
    first = "" if own else "embed the faces with the gallery's model, `fr-edge embed`, then "
    raise BundleError(
        f"no certificate of the {engine} engine judges a gallery of {model.describe()}",
        f"{first}`fr-edge verify {root} --engine {engine} --faces SRC{teacher}`",
    )


def _answer(
    report: VerifyResult, model: GalleryModel, probes: GalleryModel
) -> GalleryAdvice | None:
    """What a certificate says of galleries of a model."""
    own = _same_network(model.network, probes.network) and model.input == probes.input
    if own and model.precision == "fp32" and report.gallery is not None:
        return report.gallery
    teacher = report.teacher
    if teacher is None or teacher.gallery is None or not _made_by(teacher.made_by, model):
        return None
    return teacher.gallery


def _made_by(origin: EmbeddingOrigin | None, model: GalleryModel) -> bool:
    return (
        origin is not None
        and _same_network(origin.models, model.network)
        and origin.input == model.input
        and origin.engine == model.precision
    )


def _same_network(a: Mapping[str, str], b: Mapping[str, str]) -> bool:
    """Whether one of a network's files is the same: a bundle may hold either form or both."""
    return any(b.get(file) == sha256 for file, sha256 in a.items())


def _enrol(
    gallery: Gallery,
    names: Sequence[str],
    recogniser: Recogniser,
    photographs: Mapping[str, Sequence[Photograph]],
) -> set[str]:
    """Enrol those with photographs; the people who were."""
    enrolled = set()
    for name in names:
        if images := photographs.get(name):
            try:
                gallery.enrol(name, recogniser.embed_batch(images))
                enrolled.add(name)
            except FacesError as error:
                logger.warning("a person could not be enrolled again: %s", error.message)
    return enrolled


def _ambiguous(gallery: Gallery, threshold: float) -> list[str]:
    """People with kept faces that do not match one another, or match somebody else's."""
    names, embeddings = gallery.faces()
    kept, people = set(gallery.kept), np.unique(names, return_inverse=True)[1]
    rows = np.flatnonzero([name in kept for name in names])
    faces = np.bincount(people, minlength=1)
    ambiguous: list[str] = []
    for start in range(0, len(rows), _BLOCK):
        part = rows[start : start + _BLOCK]
        other = _nearest_other(embeddings, people, part, int(faces.max()))
        for row, similarity in zip(part, other, strict=True):
            own = embeddings[people == people[row]] @ embeddings[row]
            if similarity >= threshold or own.min() < threshold:
                ambiguous.append(names[row])
    return ambiguous


def _nearest_other(embeddings: F32, people: np.ndarray, rows: np.ndarray, most: int) -> F32:
    """The highest cosine of some rows with a row of somebody else."""
    cosine, index = nearest(embeddings[rows], embeddings, most + 1)  # one of them is another's
    cosine = np.where(people[index] == people[rows, None], np.float32(-2), cosine)
    highest: F32 = cosine.max(axis=1)
    return highest
