"""Provenance: which bytes, machine and versions a report speaks of, bound by sha256.

Digests are over pixels and indices, so that a report can be shared without the names of people.
"""

import hashlib
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .._version import __version__
from ..arrays import I64, U8
from ..documents import read_json
from ..errors import DataError
from ..faces.contract import ALIGNED_SIZE
from ..faces.sources import Faces
from .derived import PAGE, stale_files
from .manifest import Bundle
from .sbom import installed_version

_NUMBERED = re.compile(r"face-[0-9a-f]{16}")  # a number in the place of a face's name

_DECODERS = {"PIL": "Pillow", "cv2": "opencv-python-headless"}  # module -> package


@dataclass(frozen=True)
class Provenance:
    """What a report speaks of.

    Attributes:
        files: Path within the bundle -> sha256 of what was judged, and of what that was made of.
        inputs: What else was read ("pairs", "reference", ...) -> sha256 of the file.
        images: One sha256 over the sha256 of the judged images' pixels, in order; None without
            images.
        image_count: How many images that digest is over.
        pairs: One sha256 over the pairs' indices, folds and answers; None where all pairs count.
        device: Fingerprint of the machine: the backend, its version, and the CPU or GPU.
        packages: Library that was used -> version.
        fr_edge: The version that wrote the report.
        time: UTC, ISO 8601.
    """

    files: Mapping[str, str]
    inputs: Mapping[str, str] = field(default_factory=dict)
    images: str | None = None
    image_count: int = 0
    pairs: str | None = None
    device: Mapping[str, Any] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)
    fr_edge: str = ""
    time: str = ""


@dataclass(frozen=True)
class _JudgedFaces:
    synthetic: bool


@dataclass(frozen=True)
class _WorstFace:
    face: str


@dataclass(frozen=True)
class _WorstFaces:
    worst: tuple[_WorstFace, ...]


@dataclass(frozen=True)
class _FaceNames:
    """What of a report of `verify` tells whether it names faces."""

    cosine: _WorstFaces
    faces: _JudgedFaces | None = None


@dataclass
class ImageDigests:
    """The sha256 of each image's pixels, collected while images are read.

    Attributes:
        by_index: Index of the image -> digest, 32 bytes.
    """

    by_index: dict[int, bytes] = field(default_factory=dict)

    def add(self, index: int, image: U8) -> None:
        """Record an image the first time that it is read.

        Args:
            index: Of the image in its source.
            image: `(112, 112, 3) uint8` RGB.
        """
        if index not in self.by_index:
            self.by_index[index] = hashlib.sha256(image.tobytes()).digest()

    @property
    def sha256(self) -> str | None:
        """One digest over all of them in the order of their indices; None without images."""
        if not self.by_index:
            return None
        ordered = (self.by_index[index] for index in sorted(self.by_index))
        return hashlib.sha256(b"".join(ordered)).hexdigest()


def with_digests(faces: Faces) -> tuple[Faces, ImageDigests]:
    """The same faces, whose images are digested as they are read.

    An image has one digest for networks of all sizes: that of its pixels at 112x112.

    Args:
        faces: A source of faces.

    Returns:
        The faces to read from, and their digests so far.
    """
    digests, standard = ImageDigests(), faces.sized(ALIGNED_SIZE)

    def read(index: int) -> U8:
        image = faces.read(index)
        if index not in digests.by_index:
            digests.add(index, image if standard is faces else standard.read(index))
        return image

    return faces.changed(read), digests


def digest_images(images: U8) -> ImageDigests:
    """Digest images that are in memory.

    Args:
        images: `(N, 112, 112, 3) uint8`.
    """
    digests = ImageDigests()
    for index, image in enumerate(images):
        digests.add(index, image)
    return digests


def digest_pairs(fold: I64, first: I64, second: I64, same: npt.NDArray[np.bool_]) -> str:
    """One sha256 over a list of P pairs, listed or sampled.

    Args:
        fold: `(P,) int64`.
        first: Index of the first image, `(P,) int64`.
        second: Index of the second image, `(P,) int64`.
        same: Whether both are one person, `(P,) bool`.
    """
    digest = hashlib.sha256()
    for column in (fold, first, second, same):
        digest.update(np.asarray(column, np.dtype("<i8")).tobytes())
    return digest.hexdigest()


def make_provenance(
    bundle: Bundle,
    files: Iterable[str],
    *,
    images: ImageDigests | None = None,
    pairs: str | None = None,
    inputs: Mapping[str, str] | None = None,
    device: Mapping[str, Any] | None = None,
    packages: Iterable[str] = (),
) -> Provenance:
    """The provenance of a report that is made now.

    Args:
        bundle: The bundle as it was opened for the work.
        files: Paths within it that were judged or decide the result; others are left out.
        images: Digests of the images that were judged.
        pairs: What `digest_pairs` returned, where there is a list.
        inputs: What else was read -> sha256 of the file.
        device: Fingerprint of the machine.
        packages: Libraries that did the work, besides numpy and the image decoders.
    """
    decoders = [package for module, package in _DECODERS.items() if module in sys.modules]
    return Provenance(
        files={name: bundle.files[name].sha256 for name in dict.fromkeys(files) if name in bundle},
        inputs=dict(inputs or {}),
        images=images.sha256 if images else None,
        image_count=len(images.by_index) if images else 0,
        pairs=pairs,
        device=dict(device or {}),
        packages=_versions(("numpy", *decoders, *packages)),
        fr_edge=__version__,
        time=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def foreign_reason(provenance: Provenance | None, bundle: Bundle) -> str:
    """Why a report does not speak of the files that a bundle holds.

    The manifest records what its reports judged. This compares what a report says itself, so a
    report that was copied from another bundle is recognized.

    Args:
        provenance: Of the report; None for a report of an earlier fr-edge.
        bundle: An open bundle; only its manifest is used.

    Returns:
        A sentence, "" for a report of this bundle.
    """
    if provenance is None:
        return "an earlier fr-edge made it, without recording what it judged"
    for name, sha256 in provenance.files.items():
        if name not in bundle:
            return f"{name} is not in the bundle"
        if bundle.files[name].sha256 != sha256:
            return f"it judged another {name} than the bundle holds"
    return ""


def naming_reports(bundle: Bundle) -> dict[str, str]:
    """Reports that call real faces by the names of their files, and a page that may show them.

    Args:
        bundle: An open bundle.

    Returns:
        Path of the report -> the reason, in words.
    """
    naming = {
        name: "it names people's files"
        for name in bundle.files
        if name.startswith("reports/") and _names_faces(bundle.file(name))
    }
    if PAGE in bundle:
        if naming:
            naming[PAGE] = f"it shows {next(iter(naming))}"
        elif why := stale_files(bundle.files).get(PAGE):
            naming[PAGE] = f"it shows earlier reports: {why}"
    return naming


def _names_faces(path: Path) -> bool:
    """Whether a report of `verify` has names of real faces; its worst faces are called the same."""
    try:
        report = read_json(path, _FaceNames)
    except DataError:
        return False  # of another kind
    real = report.faces is not None and not report.faces.synthetic
    return real and not all(_NUMBERED.fullmatch(row.face) for row in report.cosine.worst)


def _versions(packages: Iterable[str]) -> dict[str, str]:
    versions = {package: installed_version(package) for package in packages}
    return {package: number for package, number in versions.items() if number}
