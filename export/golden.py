"""Golden faces: inputs with the original network's embeddings of them, for machines without it.

They are drawn unless the user hands over images: a bundle holds no photograph nobody asked for.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays import F32
from ..errors import FacesError
from ..faces.sources import open_faces, spread_picks
from ..faces.synthetic.render import draw_face
from .source import ExportSource

COUNT = 32

_SEED = 2024


def golden_faces(source: str | Path | None, notify: Callable[[str], None]) -> npt.NDArray[np.uint8]:
    """`(32, 112, 112, 3) uint8`: drawn, or spread over the identities of a face source.

    A source with fewer images gives fewer; raises FacesError when it has less than two.
    """
    if source is None:
        return np.stack([draw_face(identity, 0, _SEED) for identity in range(COUNT)])
    faces = open_faces(source)
    picks = spread_picks(faces, COUNT)
    if len(picks) < 2:
        raise FacesError(f"{source} holds one face; golden faces are {COUNT}, at least 2")
    if len(picks) < COUNT:
        notify(f"{source} holds {len(picks)} faces; {COUNT} make a better golden set")
    return np.stack([faces.read(index) for index in picks])


def write_golden(
    path: Path, faces: npt.NDArray[np.uint8], inputs: F32, origin: ExportSource
) -> None:
    """Write `golden.npz`; `inputs (K, 3, H, W)` are the `faces (K, 112, 112, 3)` preprocessed.

    It holds `faces`, the original's raw `embeddings (K, D) float32` of them, who made those as
    `reference` (pytorch or onnx), and of PyTorch `embeddings_fp64 (K, D) float64`, the yardstick
    for how much of a difference is float32's own.
    """
    arrays: dict[str, Any] = {"faces": faces, "embeddings": origin.embed(inputs)}
    if origin.exact:
        arrays["embeddings_fp64"] = origin.exact(inputs)
    np.savez_compressed(path, reference=np.array(origin.kind), **arrays)
