"""The manifest: what a bundle holds, read from bundle.json."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, Literal

from .._version import __version__
from ..documents import convert, read_json
from ..errors import BundleError, DataError
from ..faces.contract import InputSpec, spec_from_json
from ..files import sha256

SCHEMA = 1
MANIFEST = "bundle.json"
STAGED = ".draft"  # the folder in which a change is written
CHECKPOINTS = "checkpoint"  # the folder of a training that is not finished

_MAX_NAME = 240  # bytes; file systems allow 255, and temporary names are a few longer

_UNSIGNED = ("report.html", "policy.toml")  # need no signature, like `reports/`

Check = Literal["manifest", "used", "all"]


@dataclass(frozen=True)
class FileEntry:
    """One file of the bundle.

    Attributes:
        role: What the file is, in words.
        sha256: Hexadecimal digest of its bytes.
        size: Bytes.
        of: What it was made of or judged: path -> sha256 at that time.
    """

    role: str
    sha256: str
    size: int
    of: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _HistoryEntry:
    """What an entry of the history must be; it may hold more."""

    stage: str
    version: str = ""
    time: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    removed: Mapping[str, str] = field(default_factory=dict)
    stale: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Bundle:
    """An open bundle: its manifest, and access to its files.

    Attributes:
        root: The bundle's folder.
        spec: The input contract of its network.
        embedding_dim: Numbers per embedding.
        files: Path relative to `root` -> entry.
        history: One mapping per stage that ran, the oldest first.
        check: "manifest" never hashes a file; otherwise `file` does when a file is first asked for.
        staged: Files of an interrupted commit that may still lie in the staging folder.
        signed: Path and sha256 of the files that may be used; None where no signature is required.
    """

    root: Path
    spec: InputSpec
    embedding_dim: int
    files: Mapping[str, FileEntry]
    history: tuple[Mapping[str, Any], ...]
    check: Check = "used"
    staged: frozenset[str] = frozenset()
    signed: frozenset[tuple[str, str]] | None = None
    _checked: set[str] = field(default_factory=set, repr=False, compare=False)

    def file(self, name: str) -> Path:
        """The path of a file of this bundle, with its bytes checked once.

        Args:
            name: Path relative to the bundle.

        Raises:
            BundleError: The bundle does not hold the file (the hint names the command that makes
                it), the file is missing, its sha256 is not the manifest's, or a signature is
                required and no trusted key has signed these bytes.
        """
        if name not in self.files:
            raise BundleError(f"{self.root} has no {name}", _maker(name))
        if not self.is_usable(name):
            raise BundleError(
                f"{self.root / name} is not signed by a trusted key, or with another input contract",
                "unpack a signed pack; sign an engine with `fr-edge build-engine --sign KEY`",
            )
        if self.check != "manifest" and name not in self._checked:
            if problem := file_problem(self, name):
                raise BundleError(problem, "restore the file, or run the stage that made it again")
            self._checked.add(name)
        return self.path(name)

    def is_usable(self, name: str) -> bool:
        """Whether a file may be used here: always, unless a signature is required.

        Args:
            name: Path of a file that the manifest lists. Reports and the policy are data that
                people and commands write on the device; they need no signature.
        """
        if self.signed is None or name.startswith("reports/") or name in _UNSIGNED:
            return True
        return (name, self.files[name].sha256) in self.signed

    def path(self, name: str) -> Path:
        """Where a file of the manifest lies; its bytes are not looked at.

        Args:
            name: Path relative to the bundle.
        """
        waiting = self.root / STAGED / name
        return waiting if name in self.staged and waiting.is_file() else self.root / name

    def __contains__(self, name: str) -> bool:
        return name in self.files


def file_problem(bundle: Bundle, name: str) -> str | None:
    """What is wrong with the bytes of a file, or None.

    Args:
        bundle: An open bundle.
        name: Path of a file that its manifest lists.

    Returns:
        A sentence for a file that is missing or has another size or sha256 than the manifest says.
    """
    entry, path = bundle.files[name], bundle.path(name)
    if link := linked_part(bundle.root, path.relative_to(bundle.root).as_posix()):
        return f"{link} is a link; a bundle holds no links"
    if not path.is_file():
        return f"{path} is missing"
    if path.stat().st_size != entry.size or sha256(path) != entry.sha256:
        return f"{path} was changed: its sha256 is not the manifest's {entry.sha256[:12]}..."
    return None


def linked_part(root: Path, name: str) -> Path | None:
    """The first part of a path within a bundle that is a symbolic link, or None.

    Args:
        root: The bundle's folder, which may be a link itself.
        name: Path relative to `root`.
    """
    path = root
    for part in PurePosixPath(name).parts:
        path = path / part
        if path.is_symlink():
            return path
    return None


def read_manifest(
    root: Path, check: Check = "used", staged: frozenset[str] = frozenset()
) -> Bundle:
    """The bundle that a manifest describes; no other file is read.

    Args:
        root: The bundle's folder.
        check: Kept in the bundle for its `file` method.
        staged: Names that an interrupted commit is about to move into place.

    Raises:
        BundleError: There is no bundle, its schema is another one, or the manifest is damaged.
    """
    if not root.is_dir():
        raise BundleError(
            f"there is no bundle at {root}", "`fr-edge export` and `fr-edge distill` make one"
        )
    path = root / MANIFEST
    if MANIFEST in staged and (root / STAGED / MANIFEST).is_file():
        path = root / STAGED / MANIFEST
    if not path.is_file() or path.is_symlink():
        raise BundleError(f"{root} is not a bundle: it has no {MANIFEST}")
    try:
        data = read_json(path, dict[str, Any])
        schema = data["schema"]
    except (DataError, KeyError) as error:
        raise BundleError(f"{path} cannot be read: {error}") from error
    if schema != SCHEMA:
        raise BundleError(
            f"{root} has manifest schema {schema}; this fr-edge {__version__} reads schema {SCHEMA}",
            "upgrade fr-edge" if isinstance(schema, int) and schema > SCHEMA else "",
        )
    try:
        entries = convert(data["files"], dict[str, FileEntry], "files")
        history = convert(data["history"], list[dict[str, Any]], "history")
        convert(history, list[_HistoryEntry], "history")
        return Bundle(
            root,
            spec_from_json(data["input"]),
            int(data["embedding_dim"]),
            MappingProxyType({inside(name): entry for name, entry in entries.items()}),
            tuple(history),
            check,
            staged,
        )
    except (DataError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{path} is damaged: {error}") from error


def inside(name: str) -> str:
    """A path, if it stays within a bundle and is not one of the bundle's own files.

    Args:
        name: Path relative to the bundle's folder.

    Returns:
        `name` itself.

    Raises:
        ValueError: The path is absolute, empty, hidden, too long, contains ".." or control
            characters, or is the manifest.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or any(part.startswith(".") for part in path.parts):
        raise ValueError(f"{name!r} points outside the bundle")
    if not name.isprintable() or name != path.as_posix() or path.parts[0].startswith("bundle."):
        raise ValueError(f"{name!r} is not a name that a bundle may hold")
    if len(name.encode()) > _MAX_NAME:
        raise ValueError(f"a name of {len(name.encode())} bytes is longer than {_MAX_NAME}")
    return name


def _maker(name: str) -> str:
    if name == "model.pt":
        return "this bundle was not trained or exported with PyTorch weights"
    if name in ("model.onnx", "golden.npz"):
        return "make it with `fr-edge export SOURCE --out BUNDLE`"
    if name in ("calibration.json", "model.int8.onnx"):
        return "make it with `fr-edge calibrate BUNDLE --faces SRC`"
    if name in ("calibration.fp8.json", "model.fp8.onnx"):
        return "make it with `fr-edge calibrate BUNDLE --faces SRC --precision fp8`"
    if name in ("detector.onnx", "detector.json", "detector.fp16.onnx"):
        return "make it with `fr-edge export DETECTOR.onnx --role detector --out BUNDLE`"
    if name in ("calibration.detector.json", "detector.int8.onnx"):
        return "make it with `fr-edge calibrate BUNDLE --role detector --faces PHOTOS`"
    return "make it with `fr-edge build-engine BUNDLE`"
