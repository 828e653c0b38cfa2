"""Golden faces: inputs with the original network's embeddings of them, for machines without it.

They are synthetic unless the user gives photographs: a bundle holds none that were not asked for.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import F32, U8
from ..errors import FacesError
from ..faces.sources import open_faces, spread_picks
from ..faces.synthetic.render import draw_face
from .source import ExportSource

logger = logging.getLogger(__name__)

COUNT = 32

_SEED = 2024


def golden_faces(source: str | Path | None) -> U8:
    """Draw golden faces, or take them from a face source, spread over its identities.

    Args:
        source: A source of faces, or None to draw them.

    Returns:
        `(32, 112, 112, 3) uint8` RGB; fewer from a source with fewer images.

    Raises:
        FacesError: The source has less than two images.
    """
    if source is None:
        return np.stack([draw_face(identity, 0, _SEED) for identity in range(COUNT)])
    faces = open_faces(source)
    picks = spread_picks(faces, COUNT)
    if len(picks) < 2:
        raise FacesError(f"{source} holds one face; golden faces are {COUNT}, at least 2")
    if len(picks) < COUNT:
        logger.warning("%s holds %d faces; %d make a better golden set", source, len(picks), COUNT)
    return np.stack([faces.read(index) for index in picks])


def write_golden(path: Path, faces: U8, inputs: F32, source: ExportSource) -> None:
    """Write `golden.npz`: the faces and the original network's embeddings of them.

    It holds `faces`, the raw `embeddings (K, D) float32`, the `reference` that made them ("pytorch"
    or "onnx") and, for PyTorch, `embeddings_fp64 (K, D) float64`, which show how much of a
    difference is float32's own.

    Args:
        path: The file.
        faces: `(K, 112, 112, 3) uint8` RGB.
        inputs: `(K, 3, H, W) float32`, the faces as the input contract preprocesses them.
        source: The original network.
    """
    arrays: dict[str, Any] = {"faces": faces, "embeddings": source.embed(inputs)}
    if source.exact:
        arrays["embeddings_fp64"] = source.exact(inputs)
    np.savez_compressed(path, reference=np.array(source.kind), **arrays)
