"""The file of a gallery: embeddings, names, and what made them; arrays and JSON, no pickle."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...arrays import F32, U8, read_npz
from ...bundle.manifest import Bundle
from ...documents import convert, decode_json, encode_json
from ...errors import DataError, FacesError, UsageError
from ...faces.contract import InputSpec, spec_from_json
from ...files import replace_atomic
from ..evaluation.embeddings_file import origin_of
from ..fingerprint import SOURCES

_MEMBERS = ("embeddings", "names", "origin", "models")  # of the .npz file
_MAX_NAME = 1000  # characters
_UNIT = 1e-3  # by which the length of a stored embedding may differ from 1
_BLOCK = 1 << 16  # embeddings looked at at once


@dataclass(frozen=True)
class GalleryModel:
    """What made the embeddings of a gallery, with the shape of its JSON document.

    Attributes:
        network: The original network's files -> their sha256.
        input: The network's input contract.
        precision: "fp32", "fp16", "fp8" or "int8".
        graph: sha256 of the ONNX file that the engine was built from.
        dim: Numbers per embedding.
    """

    network: Mapping[str, str]
    input: InputSpec
    precision: str
    graph: str
    dim: int

    def describe(self) -> str:
        """One line: precision, hash and size."""
        return f"{self.precision} of {self.graph[:12]}..., {self.dim} numbers"


@dataclass(frozen=True, eq=False)
class GalleryContent:
    """What the file of a gallery holds.

    Attributes:
        embeddings: `(N, D) float32` of unit length.
        names: The person of each.
        origin: Which of the models made each, `(N,) uint8`.
        models: What makes the embeddings that are enrolled now, and, after a migration, what made
            those that are kept.
    """

    embeddings: F32
    names: Sequence[str]
    origin: U8
    models: tuple[GalleryModel, ...]


def gallery_model(bundle: Bundle, precision: str) -> GalleryModel:
    """What makes the embeddings of a bundle's engine.

    Args:
        bundle: An open bundle.
        precision: "fp32", "fp16", "fp8" or "int8".
    """
    return GalleryModel(
        origin_of(bundle, precision, "").models,
        bundle.spec,
        precision,
        bundle.files[SOURCES[precision]].sha256,
        bundle.embedding_dim,
    )


def model_difference(stored: GalleryModel, model: GalleryModel) -> str:
    """Why embeddings of two models cannot be compared.

    Args:
        stored: The gallery's.
        model: The probes'.

    Returns:
        A sentence; empty where both are the same graph with the same contract, on any backend.
    """
    if stored.graph == model.graph and stored.input == model.input and stored.dim == model.dim:
        return ""
    if stored.graph == model.graph:
        return f"its faces are fed as {stored.input.describe()}, expected {model.input.describe()}"
    return f"it was made with {stored.describe()}, expected {model.describe()}"


def write_gallery(path: Path, content: GalleryContent) -> None:
    """Write a gallery, atomically; readable by this user alone (mode 0600).

    Args:
        path: The file; its folder is made if need be.
        content: What to write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_atomic(path, private=True) as stream:
        np.savez(
            stream,
            embeddings=content.embeddings,
            names=_packed(content.names),
            origin=content.origin,
            models=_packed(content.models),
        )


def read_gallery(path: Path) -> GalleryContent:
    """Read a gallery of any model.

    Args:
        path: A file of `write_gallery`.

    Raises:
        FacesError: The file cannot be read or is damaged.
    """
    try:
        data = read_npz(path, _MEMBERS, FacesError)
        names = decode_json(data["names"].tobytes(), list[str], path)
        documents = decode_json(data["models"].tobytes(), list[dict[str, Any]], path)
        models = tuple(_parse_model(document, path) for document in documents)
        content = GalleryContent(data["embeddings"], names, data["origin"], models)
        _check_content(content)
    except FileNotFoundError as error:
        raise FacesError(f"there is no gallery at {path}", "`Gallery.save` writes one") from error
    except (DataError, UsageError, KeyError, ValueError, TypeError) as error:
        raise FacesError(
            f"{path} cannot be read as a gallery: {error}", "restore the file, or enrol again"
        ) from error
    return content


def _check_content(content: GalleryContent) -> None:
    """Raises ValueError or UsageError for content that `write_gallery` never wrote."""
    embeddings, origin, models = content.embeddings, content.origin, content.models
    count = len(content.names)
    if len(models) not in (1, 2) or len({model.dim for model in models}) > 1:
        raise ValueError(f"it names {len(models)} models, expected one, or two of one size")
    if embeddings.shape != (count, models[0].dim) or embeddings.dtype != np.float32:
        raise ValueError(f"{count} names and embeddings {embeddings.shape} {embeddings.dtype}")
    if origin.shape != (count,) or origin.dtype != np.uint8:
        raise ValueError(f"{count} names and models {origin.shape} {origin.dtype}")
    if origin.max(initial=0) >= len(models):
        raise ValueError("an embedding is of a model that it does not describe")
    for start in range(0, count, _BLOCK):
        lengths = np.linalg.norm(embeddings[start : start + _BLOCK], axis=1)
        if not (np.abs(lengths - 1) <= _UNIT).all():
            raise ValueError("an embedding is not of unit length")
    for name in dict.fromkeys(content.names):
        check_name(name)


def check_name(name: str) -> None:
    """Refuse what cannot be a person's name.

    Args:
        name: Text of 1 to 1,000 characters.

    Raises:
        UsageError: It is empty or too long.
    """
    if not isinstance(name, str) or not name.strip() or len(name) > _MAX_NAME:
        raise UsageError(f"a name has 1 to {_MAX_NAME:,} characters, found {str(name)[:40]!r}")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the name {ascii(name)[:80]} is not Unicode text") from error


def _parse_model(document: dict[str, Any], path: Path) -> GalleryModel:
    network = convert(document["network"], dict[str, str], path)
    spec = spec_from_json(document["input"])
    precision, graph = str(document["precision"]), str(document["graph"])
    return GalleryModel(network, spec, precision, graph, convert(document["dim"], int, path))


def _packed(document: object) -> U8:
    return np.frombuffer(encode_json(document, indent=0), np.uint8)
