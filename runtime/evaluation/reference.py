"""Reference and engine embeddings of the same faces: who speaks for the original, and the proof."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...arrays import F32
from ...bundle.golden import ORIGINS, read_golden
from ...bundle.manifest import Bundle
from ...faces.quality import measure_quality
from ...faces.sources import Faces
from ...metrics.rates import CosineDrift, measure_drift
from ...progress import Track
from ..session import Session
from .embeddings_file import check_embeddings, read_embeddings, refuse_stranger

_BATCH = 32


@dataclass(frozen=True)
class ReferenceCheck:
    """The golden faces' answer: `fp32` is the lowest cosine of `model.onnx` on this machine with
    the original network, `engine` the engine's drift from the original, `origin` its name."""

    fp32: float
    engine: CosineDrift
    origin: str


@dataclass(frozen=True)
class PairedEmbeddings:
    """Embeddings of the same faces by reference and engine, `(N, D) float32` each, and the faces'
    `quality (N, 5) float32`."""

    reference: F32
    engine: F32
    quality: F32


def prove(bundle: Bundle, fp32: Session, session: Session) -> ReferenceCheck:
    """Run both on the golden faces; raises ModelError when an embedding is zero or not finite."""
    golden = read_golden(bundle)
    exported, engine = fp32.embed(golden.faces), session.embed(golden.faces)
    check_embeddings(exported, golden.keys, "model.onnx")
    check_embeddings(engine, golden.keys, f"the {session.precision} engine")
    return ReferenceCheck(
        measure_drift(golden.embeddings, exported, golden.keys).min,
        measure_drift(golden.embeddings, engine, golden.keys),
        ORIGINS.get(golden.origin, golden.origin),
    )


def embed_both(
    bundle: Bundle,
    faces: Faces,
    fp32: Session,
    session: Session,
    file: Path | None,
    track: Track,
) -> PairedEmbeddings:
    """Reference and engine embeddings of `faces`; each face is decoded once.

    The reference is `file` where it is given, else `fp32`. Raises FacesError for unusable faces or
    a file that is not of them, or not of this bundle's network, ModelError when an embedding is
    zero or not finite.
    """
    given = _given(bundle, faces, file) if file else None
    old, new, quality = [], [], []
    steps = (len(faces) + _BATCH - 1) // _BATCH
    for batch in track(faces.batches(_BATCH), "verifying", steps):
        if given is None:
            old.append(fp32.embed(batch))
        new.append(session.embed(batch))
        quality.append(measure_quality(batch))
    reference = np.concatenate(old) if given is None else given
    engine = np.concatenate(new)
    check_embeddings(reference, faces.keys, "model.onnx")
    check_embeddings(engine, faces.keys, f"the {session.precision} engine")
    return PairedEmbeddings(reference, engine, np.concatenate(quality))


def _given(bundle: Bundle, faces: Faces, file: Path) -> F32:
    held = read_embeddings(file, faces.keys, bundle.embedding_dim)
    refuse_stranger(held.origin, bundle, str(file))
    return held.rows
