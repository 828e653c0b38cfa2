"""The manifest: what a bundle holds, read from bundle.json; file hashes and atomic writes.

Knows nothing of how a bundle changes: bundle.py does.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

from .._version import __version__
from ..errors import BundleError
from ..faces.contract import InputSpec, spec_from_json

SCHEMA = 1

MANIFEST = "bundle.json"


@dataclass(frozen=True)
class FileEntry:
    """One file of the bundle; `size` in bytes."""

    role: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Bundle:
    """What the manifest says; `files` maps paths relative to `root`."""

    root: Path
    spec: InputSpec
    embedding_dim: int
    files: Mapping[str, FileEntry]
    history: tuple[Mapping[str, Any], ...]

    def file(self, name: str) -> Path:
        """The path of a file that this bundle holds; raises BundleError with the command that makes it."""
        if name not in self.files:
            raise BundleError(f"{self.root} has no {name}", _maker(name))
        return self.root / name

    def __contains__(self, name: str) -> bool:
        return name in self.files


def _maker(name: str) -> str:
    if name == "model.pt":
        return "this bundle was not trained or exported with PyTorch weights"
    if name in ("model.onnx", "golden.npz"):
        return "make it with `fr-edge export SOURCE --out BUNDLE`"
    if name in ("calibration.json", "model.int8.onnx"):
        return "make it with `fr-edge calibrate BUNDLE --faces SRC`"
    return "make it with `fr-edge build-engine BUNDLE`"


def read_manifest(root: Path) -> Bundle:
    """The bundle as its manifest tells it; raises BundleError. Files are not looked at."""
    if not root.is_dir():
        raise BundleError(
            f"there is no bundle at {root}", "`fr-edge export` and `distill` make one"
        )
    if not (root / MANIFEST).is_file():
        raise BundleError(f"{root} is not a bundle: it has no {MANIFEST}")
    try:
        data = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
        schema = data["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{root / MANIFEST} cannot be read: {error}") from error
    if schema != SCHEMA:
        raise BundleError(
            f"{root} has manifest schema {schema}; this fr-edge {__version__} reads schema {SCHEMA}",
            "upgrade fr-edge" if isinstance(schema, int) and schema > SCHEMA else "",
        )
    try:
        files = {inside(name): FileEntry(**entry) for name, entry in data["files"].items()}
        return Bundle(
            root,
            spec_from_json(data["input"]),
            int(data["embedding_dim"]),
            MappingProxyType(files),
            tuple(data["history"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{root / MANIFEST} is damaged: {error}") from error


def inside(name: str) -> str:
    """`name` itself; raises ValueError when it is no path within a bundle."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"{name!r} points outside the bundle")
    return name
