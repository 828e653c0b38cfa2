"""Golden faces: inputs with the original network's embeddings of them, for machines without it.

They are synthetic unless the user gives photographs: a bundle holds none that were not asked for.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import F32, F64, U8, read_npz
from ..errors import BundleError, DataError, FacesError
from ..faces.contract import ALIGNED_SIZE
from ..faces.sources import open_faces, spread_picks
from ..faces.synthetic.render import draw_face
from .manifest import Bundle

logger = logging.getLogger(__name__)

_COUNT = 32  # golden faces of a bundle
_SEED = 2024  # of the synthetic ones
ORIGINS = {"pytorch": "PyTorch", "onnx": "the original ONNX network"}


@dataclass(frozen=True)
class Golden:
    """Golden faces and the original network's embeddings of them.

    Attributes:
        faces: `(K, 112, 112, 3) uint8`, RGB, aligned.
        embeddings: `(K, D) float32`.
        origin: What computed the embeddings.
    """

    faces: U8
    embeddings: F32
    origin: str

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(f"golden/{index:02d}" for index in range(len(self.faces)))


def read_golden(bundle: Bundle) -> Golden:
    """Read a bundle's golden faces.

    Args:
        bundle: An open bundle.

    Raises:
        BundleError: golden.npz is missing or damaged.
    """
    path = bundle.file("golden.npz")
    try:
        data = read_npz(path, ("faces", "embeddings", "reference"))
        golden = Golden(data["faces"], data["embeddings"], str(data["reference"]))
    except (DataError, OSError, KeyError) as error:
        raise BundleError(f"{path} cannot be read: {error}", "export the network again") from error
    count = len(golden.faces)
    if (
        golden.faces.dtype != np.uint8
        or golden.faces.shape != (count, ALIGNED_SIZE, ALIGNED_SIZE, 3)
        or golden.embeddings.shape != (count, bundle.embedding_dim)
        or not count
    ):
        raise BundleError(
            f"{path} holds faces {golden.faces.shape} and embeddings {golden.embeddings.shape}, "
            f"expected (K, {ALIGNED_SIZE}, {ALIGNED_SIZE}, 3) and (K, {bundle.embedding_dim})",
            "export the network again",
        )
    return golden


def golden_faces(source: str | Path | None) -> U8:
    """Render golden faces, or take them from a face source, spread over its identities.

    Args:
        source: A source of faces, or None for synthetic ones.

    Returns:
        `(32, 112, 112, 3) uint8` RGB; fewer from a source with fewer images.

    Raises:
        FacesError: The source has less than two images.
    """
    if source is None:
        return np.stack([draw_face(identity, 0, _SEED) for identity in range(_COUNT)])
    faces = open_faces(source)
    picks = spread_picks(faces, _COUNT)
    if len(picks) < 2:
        raise FacesError(f"{source} holds one face; golden faces are {_COUNT}, at least 2")
    if len(picks) < _COUNT:
        logger.warning("%s holds %d faces; %d make a better golden set", source, len(picks), _COUNT)
    return np.stack([faces.read(index) for index in picks])


def write_golden(path: Path, faces: U8, embeddings: F32, origin: str, exact: F64 | None) -> None:
    """Write `golden.npz`.

    Args:
        path: The file.
        faces: `(K, 112, 112, 3) uint8` RGB.
        embeddings: The original network's, `(K, D) float32`, not normalised.
        origin: What computed them: "pytorch" or "onnx".
        exact: The same computed in float64, `(K, D)`, which show how much of a difference is
            float32's own; None where the original cannot.
    """
    arrays: dict[str, Any] = {"faces": faces, "embeddings": embeddings}
    if exact is not None:
        arrays["embeddings_fp64"] = exact
    np.savez_compressed(path, reference=np.array(origin), **arrays)
