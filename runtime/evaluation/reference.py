"""Reference and engine embeddings of the same faces, and the check that the reference is right."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...arrays import F32
from ...bundle.golden import ORIGINS, Golden
from ...bundle.manifest import Bundle
from ...faces.contract import ALIGNED_SIZE
from ...faces.embedding_log import logged_embedder
from ...faces.quality import measure_quality
from ...faces.sources import Faces
from ...metrics.protocols import ListedPairs
from ...metrics.rates import CosineDrift, measure_drift
from ...progress import Track
from ..frames import align_faces, draw_frame
from ..session import Session
from .embeddings_file import check_embeddings, read_embeddings, refuse_other_network

_BATCH = 32  # faces decoded at a time

_SMALL_BATCHES = (1, 2, 3, 4, 8, 16)  # faces; a CPU runs 1 to 4 at a time


@dataclass(frozen=True)
class ReferenceCheck:
    """The golden faces' answer, with the shape of its JSON document.

    Attributes:
        original: The original network's name.
        fp32_min_cosine: Lowest cosine of model.onnx on this machine with the original network.
        engine: Cosines of the engine with the original network.
        repeat_min_cosine: Lowest cosine of the engine's embeddings with those of the same faces
            again, in another order and after other faces; None in reports of earlier versions.
        small_batches_min_cosine: Lowest cosine of the engine's embeddings in batches of 1, 2, 3, 4, 8 and 16
            faces with those of the original network; None in reports of earlier versions.
        alignment_min_cosine: Of an engine that takes frames: lowest cosine of its embeddings of
            faces that it aligned with those of the same faces aligned on the host.
    """

    original: str
    fp32_min_cosine: float
    engine: CosineDrift
    repeat_min_cosine: float | None = None
    small_batches_min_cosine: float | None = None
    alignment_min_cosine: float | None = None


@dataclass(frozen=True)
class PairedEmbeddings:
    """Embeddings of the same N faces by both networks.

    Attributes:
        reference: `(N, D) float32`.
        engine: `(N, D) float32`.
        quality: Of the faces, `(N, 5) float32`, as `faces.quality.measure_quality` has it.
    """

    reference: F32
    engine: F32
    quality: F32


@dataclass(frozen=True)
class FacesSummary:
    """The faces that an engine was judged on.

    Attributes:
        where: The source's name.
        count: Faces.
        identities: People.
        synthetic: Whether the faces are of no real person.
        genuine_pairs: Pairs of one person that the rates are over; 0 in reports of earlier versions.
        impostor_pairs: Pairs of two people.
        listed_pairs: Pairs of the list; 0 without one.
    """

    where: str
    count: int
    identities: int
    synthetic: bool
    genuine_pairs: int = 0
    impostor_pairs: int = 0
    listed_pairs: int = 0


def check_reference(
    golden: Golden, reference: Session, engine: Session, side: int = ALIGNED_SIZE
) -> ReferenceCheck:
    """Run both networks on the golden faces, and the engine on them again.

    An engine that repeats what an earlier run left in its buffers gives other embeddings then. The
    third time they come in batches of 1, 2, 3, 4, 8 and 16 faces, for which an engine may have other kernels:
    most devices embed one face at a time, and all other faces are judged in large batches.

    Args:
        golden: The bundle's golden faces, with the original network's embeddings.
        reference: model.onnx in FP32.
        engine: What is judged.
        side: Of the faces that the network takes, in pixels: its `InputSpec.crop_side`.

    Raises:
        ModelError: An embedding is zero or not finite.
    """
    exported, judged = reference.embed(golden.faces), engine.embed(golden.faces)
    check_embeddings(exported, golden.keys, reference.file)
    check_embeddings(judged, golden.keys, engine.file)
    return ReferenceCheck(
        ORIGINS.get(golden.origin, golden.origin),
        measure_drift(golden.embeddings, exported, golden.keys).min,
        measure_drift(golden.embeddings, judged, golden.keys),
        measure_drift(judged, _embed_again(golden, engine), golden.keys).min,
        _small_batches_min_cosine(golden, engine),
        _check_alignment(golden, engine, side) if engine.input_kind == "frame" else None,
    )


def _check_alignment(golden: Golden, engine: Session, side: int) -> float:
    """Golden faces in drawn frames, aligned by the engine and by `norm_crop`'s rules on the host."""
    random = np.random.default_rng(0)
    aligned, cut = [], []
    for face in golden.faces:
        frame, landmarks = draw_frame(face, random)
        aligned.append(engine.embed_frame(frame, landmarks))
        cut.append(engine.embed(align_faces(frame, landmarks, side)))
    inside, outside = np.concatenate(aligned), np.concatenate(cut)
    check_embeddings(inside, golden.keys, engine.file)
    return measure_drift(outside, inside, golden.keys).min


def _embed_again(golden: Golden, engine: Session) -> F32:
    engine.embed(np.ascontiguousarray(golden.faces[:, :, ::-1]))  # mirrored
    return engine.embed(np.ascontiguousarray(golden.faces[::-1]))[::-1]


def _small_batches_min_cosine(golden: Golden, engine: Session) -> float:
    """Of the golden faces one after the other, again from the first where they are too few."""
    picks = np.arange(sum(_SMALL_BATCHES)) % len(golden.faces)
    batches = np.split(picks, np.cumsum(_SMALL_BATCHES)[:-1])
    rows = np.concatenate([engine.embed(golden.faces[batch]) for batch in batches])
    keys = [golden.keys[pick] for pick in picks]
    check_embeddings(rows, keys, engine.file)
    return measure_drift(golden.embeddings[picks], rows, keys).min


def embed_both(
    bundle: Bundle,
    faces: Faces,
    reference: Session,
    engine: Session,
    file: Path | None,
    track: Track,
) -> PairedEmbeddings:
    """Embed faces with reference and engine; each face is decoded once.

    Args:
        bundle: The bundle that both belong to.
        faces: N faces.
        reference: model.onnx in FP32, used without a file.
        engine: What is judged.
        file: Embeddings of the faces by the original network, which take the reference's place.
        track: Shows progress.

    Raises:
        FacesError: A face cannot be decoded, or the file is not of these faces or not of this
            bundle's network.
        ModelError: An embedding is zero or not finite.
    """
    given = _read_reference(bundle, faces, file) if file else None
    expected, judged, quality = [], [], []
    steps = (len(faces) + _BATCH - 1) // _BATCH
    with (
        logged_embedder(reference, faces, *_identity(reference), "reference") as logged_reference,
        logged_embedder(engine, faces, *_identity(engine), "engine") as logged_engine,
    ):
        for batch in track(faces.batches(_BATCH), "verifying", steps):
            if given is None:
                expected.append(logged_reference.embed(batch))
            judged.append(logged_engine.embed(batch))
            quality.append(measure_quality(batch))
    pair = PairedEmbeddings(
        np.concatenate(expected) if given is None else given,
        np.concatenate(judged),
        np.concatenate(quality),
    )
    check_embeddings(pair.reference, faces.keys, reference.file if file is None else str(file))
    check_embeddings(pair.engine, faces.keys, engine.file)
    return pair


def summarize_faces(faces: Faces | None, pairs: ListedPairs | None = None) -> FacesSummary | None:
    """A source of faces as reports name it, without the folders above it.

    Args:
        faces: The source, or None.
        pairs: The pair list, where there is one.
    """
    if faces is None:
        return None
    where = faces.where if faces.synthetic else Path(faces.where).name
    listed = 0 if pairs is None else len(pairs.same)
    if pairs is not None and not faces.labelled:
        genuine, total = int(pairs.same.sum()), listed
    else:
        counts = np.bincount(np.asarray(faces.labels, np.int64))
        genuine = int((counts * (counts - 1) // 2).sum())
        total = len(faces) * (len(faces) - 1) // 2
    people = faces.identities
    return FacesSummary(
        where, len(faces), people, faces.synthetic, genuine, total - genuine, listed
    )


def _identity(session: Session) -> tuple[str, str]:
    return session.sha256, session.backend


def _read_reference(bundle: Bundle, faces: Faces, file: Path) -> F32:
    embeddings = read_embeddings(file, faces.keys, bundle.embedding_dim)
    refuse_other_network(embeddings.origin, bundle, str(file))
    return embeddings.rows
