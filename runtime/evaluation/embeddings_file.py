"""Embeddings in a file, with the keys of their faces and what made them.

`fr-edge embed` writes them where the original network runs, `verify` reads them on the device. What
made them is kept along, so that another network's file is told from a bad engine.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...arrays import F32, I64, read_npz
from ...bundle.manifest import Bundle
from ...documents import convert, decode_json, encode_json
from ...errors import DataError, FacesError, ModelError, UsageError
from ...faces.contract import InputSpec, spec_from_json
from ...files import write_atomic

_NETWORK = ("model.pt", "model.onnx")  # one network in two forms; a bundle may hold either or both
_EMBED_AGAIN = (
    "make it again with `fr-edge embed BUNDLE --engine fp32 [--backend torch] --faces SRC"
    " --out F.npz`"
)

_EMBED_FIRST = "make it with `fr-edge embed BUNDLE --backend torch --faces SRC --out FILE.npz`"


@dataclass(frozen=True)
class EmbeddingOrigin:
    """What made embeddings, with the shape of its JSON document.

    Attributes:
        models: The network's files -> their sha256.
        input: The network's input contract.
        engine: "fp32", "fp16", "fp8" or "int8".
        backend: Where it ran.
    """

    models: Mapping[str, str]
    input: InputSpec
    engine: str
    backend: str


@dataclass(frozen=True)
class Embeddings:
    """Embeddings from a file.

    Attributes:
        rows: `(N, D) float32`.
        origin: What made them; None where the file does not record it.
    """

    rows: F32
    origin: EmbeddingOrigin | None


def origin_of(bundle: Bundle, precision: str, backend: str) -> EmbeddingOrigin:
    """The origin of embeddings that a bundle's engine makes.

    Args:
        bundle: An open bundle.
        precision: "fp32", "fp16", "fp8" or "int8".
        backend: Where it runs.
    """
    models = {name: bundle.files[name].sha256 for name in _NETWORK if name in bundle}
    return EmbeddingOrigin(models, bundle.spec, precision, backend)


def refuse_other_network(origin: EmbeddingOrigin | None, bundle: Bundle, name: str) -> None:
    """Refuse reference embeddings that the bundle's original network did not make.

    They are accepted when one of the network's files is the bundle's, the input contract is the
    same, and they were made in FP32: an engine in lower precision would be compared with itself.

    Args:
        origin: What made them.
        bundle: The bundle that they are a reference for.
        name: The file's name, for the error.

    Raises:
        FacesError: They are another network's, or the origin is not known.
    """
    if origin is None:
        raise FacesError(f"{name} does not say which network made it", _EMBED_AGAIN)
    own = origin_of(bundle, "fp32", "").models
    if not any(own.get(file) == sha256 for file, sha256 in origin.models.items()):
        raise FacesError(
            f"{name} holds embeddings of another bundle: its network is {_short(origin.models)}, "
            f"this bundle's {_short(own)}",
            f"{_EMBED_AGAIN}; a gallery of another network goes into --teacher",
        )
    if origin.input != bundle.spec:
        raise FacesError(
            f"{name} was made with faces as {origin.input.describe()}, "
            f"this bundle's contract is {bundle.spec.describe()}",
            _EMBED_AGAIN,
        )
    if origin.engine != "fp32":
        raise FacesError(
            f"{name} was made by the {origin.engine} engine on {origin.backend}, "
            "expected the original in fp32",
            _EMBED_AGAIN,
        )


def write_embeddings(
    path: Path,
    keys: Sequence[str],
    labels: Sequence[int] | I64,
    embeddings: F32,
    origin: EmbeddingOrigin,
) -> None:
    """Write a file of embeddings, atomically.

    Args:
        path: An .npz file; its folder is made if need be.
        keys: Names of the N faces.
        labels: `(N,)`, the faces' people.
        embeddings: `(N, D) float32`, as the network gave them.
        origin: What made them.

    Raises:
        UsageError: The name does not end in .npz.
    """
    if path.suffix != ".npz":
        raise UsageError(f"embeddings go into a .npz file, found {path}", "--out embeddings.npz")
    stream = io.BytesIO()
    np.savez_compressed(
        stream,
        embeddings=embeddings,
        keys=np.array(keys, dtype=np.str_),
        labels=np.asarray(labels, np.int64),
        origin=np.array(encode_json(origin, indent=0).decode().strip()),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, stream.getvalue(), private=True)


def read_embeddings(path: Path, keys: Sequence[str], dim: int) -> Embeddings:
    """Read the embeddings of some faces.

    Args:
        path: A file as `write_embeddings` makes it; `labels` and `origin` may be missing.
        keys: The faces, in the order of the result.
        dim: Numbers per embedding that are expected.

    Raises:
        FacesError: The file cannot be read, names a face twice, lacks one of `keys`, or holds
            embeddings of another size.
        ModelError: An embedding is zero or not finite.
    """
    try:
        data = read_npz(path, ("keys", "embeddings", "origin"), FacesError)
        names, rows = data["keys"], data["embeddings"]
        origin = _parse_origin(str(data["origin"])) if "origin" in data else None
    except FileNotFoundError as error:
        raise FacesError(f"there is no file of embeddings at {path}") from error
    except FacesError as error:
        raise FacesError(error.message, error.hint or _EMBED_FIRST) from error
    except (KeyError, ValueError) as error:
        raise FacesError(f"{path} cannot be read as embeddings: {error}", _EMBED_FIRST) from error
    if rows.ndim != 2 or rows.dtype.kind != "f" or names.shape != (len(rows),):
        raise FacesError(
            f"{path} holds embeddings {rows.shape} {rows.dtype} and keys {names.shape}, "
            "expected (N, D) floats and (N,) names"
        )
    if rows.shape[1] != dim:
        raise FacesError(
            f"{path} holds embeddings of {rows.shape[1]} numbers, this bundle's have {dim}",
            "it was made with another network, and embeddings of two sizes cannot be compared",
        )
    index = {str(key): row for row, key in enumerate(names)}
    if len(index) != len(names):
        raise FacesError(f"{path} names {len(names) - len(index)} faces twice")
    missing = [key for key in keys if key not in index]
    if missing:
        raise FacesError(
            f"{path} lacks {len(missing)} of {len(keys)} faces, the first is {missing[0]}",
            "embed the same faces on both machines",
        )
    picked: F32 = rows[[index[key] for key in keys]].astype(np.float32)
    check_embeddings(picked, keys, str(path))
    return Embeddings(picked, origin)


def check_embeddings(embeddings: F32, keys: Sequence[str], name: str) -> None:
    """Refuse embeddings that cannot be compared.

    Args:
        embeddings: `(N, D) float32`.
        keys: Names of the N faces.
        name: What made them, for the error.

    Raises:
        ModelError: One is zero or not finite.
    """
    good = np.isfinite(embeddings).all(axis=1) & np.any(embeddings != 0, axis=1)
    bad = np.flatnonzero(~good)
    if len(bad):
        raise ModelError(
            f"{name}: {len(bad)} of {len(keys)} embeddings are zero or not finite, "
            f"the first is of {keys[bad[0]]}",
            "the network overflows or its weights are damaged; try --engine fp32 to see which",
        )


def _parse_origin(text: str) -> EmbeddingOrigin:
    """Raises ValueError for text that is no origin."""
    try:
        data = decode_json(text.encode(errors="replace"), dict[str, Any], "origin")
        models = convert(data["models"], dict[str, str], "origin")
        spec = spec_from_json(data["input"])
        return EmbeddingOrigin(models, spec, str(data["engine"]), str(data["backend"]))
    except (KeyError, TypeError, DataError) as error:
        raise ValueError(f"what made them cannot be read: {error}") from error


def _short(models: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {sha256[:12]}..." for name, sha256 in models.items()) or "unknown"
