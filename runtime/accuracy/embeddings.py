"""Embeddings in a file, with the keys of their faces: what one machine hands to another.

`fr-edge embed` writes them where the original network runs, `verify` reads them on the device.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...bundle import write_atomic
from ...errors import FacesError, ModelError, UsageError
from .origin import Origin, origin_from_json

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Embeddings:
    """`rows (N, D) float32` and what made them, None where the file does not say."""

    rows: F32
    origin: Origin | None


def write_embeddings(
    path: Path,
    keys: Sequence[str],
    labels: Sequence[int] | npt.NDArray[np.int64],
    embeddings: F32,
    origin: Origin,
) -> None:
    """An `.npz` with `embeddings (N, D) float32` as the network gave them, `keys` and `labels (N,)`,
    and `origin`, JSON of what made them.

    Raises UsageError when the name does not end in .npz.
    """
    if path.suffix != ".npz":
        raise UsageError(f"embeddings go into a .npz file, found {path}", "--out embeddings.npz")
    stream = io.BytesIO()
    np.savez_compressed(
        stream,
        embeddings=embeddings,
        keys=np.array(keys, dtype=np.str_),
        labels=np.asarray(labels, np.int64),
        origin=np.array(json.dumps(origin.to_json())),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, stream.getvalue())


def read_embeddings(path: Path, keys: Sequence[str], dim: int) -> Embeddings:
    """The embeddings of the faces `keys`, in that order, `dim` numbers each.

    Raises FacesError when the file cannot be read, names a face twice, lacks one of `keys`, or
    holds embeddings of another size; ModelError when one is zero or not finite.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as data:
            held, found = data["keys"], data["embeddings"]
            origin = origin_from_json(str(data["origin"])) if "origin" in data else None
    except FileNotFoundError as error:
        raise FacesError(f"there is no file of embeddings at {path}") from error
    except Exception as error:  # zipfile, zlib and numpy each raise their own
        raise FacesError(
            f"{path} cannot be read as embeddings: {error}",
            "make it with `fr-edge embed BUNDLE --backend torch --faces SRC --out FILE.npz`",
        ) from error
    if found.ndim != 2 or found.dtype.kind != "f" or held.shape != (len(found),):
        raise FacesError(
            f"{path} holds embeddings {found.shape} {found.dtype} and keys {held.shape}, "
            "expected (N, D) floats and (N,) names"
        )
    if found.shape[1] != dim:
        raise FacesError(
            f"{path} holds embeddings of {found.shape[1]} numbers, this bundle's have {dim}",
            "it was made with another network, and embeddings of two sizes cannot be compared",
        )
    where = {str(key): row for row, key in enumerate(held)}
    if len(where) != len(held):
        raise FacesError(f"{path} names {len(held) - len(where)} faces twice")
    missing = [key for key in keys if key not in where]
    if missing:
        raise FacesError(
            f"{path} lacks {len(missing)} of {len(keys)} faces, the first is {missing[0]}",
            "embed the same faces on both machines",
        )
    picked: F32 = found[[where[key] for key in keys]].astype(np.float32)
    check_embeddings(picked, keys, str(path))
    return Embeddings(picked, origin)


def check_embeddings(embeddings: F32, keys: Sequence[str], who: str) -> None:
    """Raises ModelError when one of `(N, D)` is zero or not finite: it is nobody's face."""
    good = np.isfinite(embeddings).all(axis=1)
    good &= np.any(embeddings != 0, axis=1)
    bad = np.flatnonzero(~good)
    if len(bad):
        raise ModelError(
            f"{who}: {len(bad)} of {len(keys)} embeddings are zero or not finite, "
            f"the first is of {keys[bad[0]]}",
            "the network overflows or its weights are damaged; try --engine fp32 to see which",
        )
