"""Reference and engine embeddings of the same faces: who speaks for the original, and the proof."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..bundle import Bundle
from ..faces.contract import preprocess
from ..faces.sources import Faces
from ..progress import Track
from .cpu import CpuSession
from .drift import Drift, measure_drift
from .embeddings import check_embeddings, read_embeddings
from .golden import ORIGINS, read_golden
from .session import Session, embed_faces

F32 = npt.NDArray[np.float32]
_BATCH = 32


@dataclass(frozen=True)
class Proof:
    """The golden faces' answer: `fp32` is the lowest cosine of `model.onnx` on this machine with
    the original network, `engine` the engine's drift from the original, `origin` its name."""

    fp32: float
    engine: Drift
    origin: str


def prove(bundle: Bundle, fp32: CpuSession, session: Session) -> Proof:
    """Run both on the golden faces; raises ModelError when an embedding is zero or not finite."""
    golden = read_golden(bundle)
    inputs = preprocess(golden.faces, bundle.spec)
    exported, engine = fp32.embed(inputs), session.embed(inputs)
    check_embeddings(exported, golden.keys, "model.onnx")
    check_embeddings(engine, golden.keys, f"the {session.precision} engine")
    return Proof(
        measure_drift(golden.embeddings, exported, golden.keys).min,
        measure_drift(golden.embeddings, engine, golden.keys),
        ORIGINS.get(golden.origin, golden.origin),
    )


def embed_both(
    bundle: Bundle,
    faces: Faces,
    fp32: CpuSession,
    session: Session,
    file: Path | None,
    track: Track,
) -> tuple[F32, F32]:
    """Reference and engine embeddings of `faces`, `(N, D) float32` each.

    The reference is `file` where it is given, else `fp32`; faces are decoded once. Raises
    FacesError for unusable faces or a file that is not of them, ModelError when an embedding is
    zero or not finite.
    """
    if file is not None:
        old = read_embeddings(file, faces.keys, bundle.embedding_dim)
        new = embed_faces(session, bundle, faces, track, "verifying")
    else:
        steps = (len(faces) + _BATCH - 1) // _BATCH
        parts = []
        for batch in track(faces.batches(_BATCH), "verifying", steps):
            inputs = preprocess(batch, bundle.spec)
            parts.append((fp32.embed(inputs), session.embed(inputs)))
        old, new = (np.concatenate(side) for side in zip(*parts, strict=True))
        check_embeddings(old, faces.keys, "model.onnx")
    check_embeddings(new, faces.keys, f"the {session.precision} engine")
    return old, new
