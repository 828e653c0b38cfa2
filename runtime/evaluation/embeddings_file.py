"""What made embeddings: a network by the hashes of its files, its input contract, and the engine.

Kept with the embeddings, so that a file made with another network is told from a bad engine.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...arrays import F32
from ...bundle.manifest import Bundle
from ...errors import DataError, FacesError, ModelError, UsageError
from ...faces.contract import InputSpec, spec_from_json
from ...files import write_atomic

NETWORK = ("model.pt", "model.onnx")
"""One network in two forms; a bundle may hold either or both."""


@dataclass(frozen=True)
class EmbeddingOrigin:
    """`models` maps the network's files to their sha256; `precision` is fp32, fp16 or int8."""

    models: Mapping[str, str]
    spec: InputSpec
    precision: str
    backend: str

    def to_json(self) -> dict[str, Any]:
        return {
            "models": dict(self.models),
            "input": self.spec.to_json(),
            "engine": self.precision,
            "backend": self.backend,
        }


def origin_of(bundle: Bundle, precision: str, backend: str) -> EmbeddingOrigin:
    """The origin of embeddings that a bundle's engine makes."""
    models = {name: bundle.files[name].sha256 for name in NETWORK if name in bundle}
    return EmbeddingOrigin(models, bundle.spec, precision, backend)


def origin_from_json(text: str) -> EmbeddingOrigin:
    """The inverse of `Origin.to_json`, from its JSON text; raises ValueError when it is none."""
    try:
        data = json.loads(text)
        models = {str(name): str(sha256) for name, sha256 in data["models"].items()}
        spec = spec_from_json(data["input"])
        return EmbeddingOrigin(models, spec, str(data["engine"]), str(data["backend"]))
    except (AttributeError, KeyError, TypeError, DataError) as error:
        raise ValueError(f"what made them cannot be read: {error}") from error


def refuse_stranger(origin: EmbeddingOrigin | None, bundle: Bundle, who: str) -> None:
    """Raises FacesError unless embeddings of this origin may speak for the bundle's original.

    They may when one of the network's files is the bundle's, the contract is, and no engine in
    lower precision made them: such a one would be its own witness. `who` names them.
    """
    again = "make it again with `fr-edge embed BUNDLE --engine fp32 [--backend torch] --faces SRC --out F.npz`"
    if origin is None:
        raise FacesError(f"{who} does not say which network made it", again)
    ours = origin_of(bundle, "fp32", "").models
    if not any(ours.get(name) == sha256 for name, sha256 in origin.models.items()):
        raise FacesError(
            f"{who} holds embeddings of another bundle: its network is {_named(origin.models)}, "
            f"this bundle's {_named(ours)}",
            f"{again}; a gallery of another network goes into --teacher",
        )
    if origin.spec != bundle.spec:
        raise FacesError(
            f"{who} was made with faces as {origin.spec.describe()}, "
            f"this bundle's contract is {bundle.spec.describe()}",
            again,
        )
    if origin.precision != "fp32":
        raise FacesError(
            f"{who} was made by the {origin.precision} engine on {origin.backend}, "
            "expected the original in fp32",
            again,
        )


def _named(models: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {sha256[:12]}..." for name, sha256 in models.items()) or "unknown"


# Embeddings in a file, with the keys of their faces: what one machine hands to another.
#
# `fr-edge embed` writes them where the original network runs, `verify` reads them on the device.


@dataclass(frozen=True)
class Embeddings:
    """`rows (N, D) float32` and what made them, None where the file does not say."""

    rows: F32
    origin: EmbeddingOrigin | None


def write_embeddings(
    path: Path,
    keys: Sequence[str],
    labels: Sequence[int] | npt.NDArray[np.int64],
    embeddings: F32,
    origin: EmbeddingOrigin,
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
