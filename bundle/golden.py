"""The bundle's golden faces, with the original network's embeddings for machines that cannot run it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import BundleError
from ..faces.contract import ALIGNED_SIZE
from .manifest import Bundle

ORIGINS = {"pytorch": "PyTorch", "onnx": "the original ONNX network"}


@dataclass(frozen=True)
class Golden:
    """Golden faces and the original network's embeddings of them.

    Attributes:
        faces: `(K, 112, 112, 3) uint8`, RGB, aligned.
        embeddings: `(K, D) float32`.
        origin: What computed the embeddings.
    """

    faces: npt.NDArray[np.uint8]
    embeddings: npt.NDArray[np.float32]
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
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as data:
            golden = Golden(data["faces"], data["embeddings"], str(data["reference"]))
    except Exception as error:  # zipfile, zlib and numpy each raise their own
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
