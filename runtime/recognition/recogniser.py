"""Photographs in, embeddings and decisions out: detection, alignment, embedding and threshold.

Nothing is embedded that was not aligned: with a detector faces are found and cut out of photographs at
the network's own size; without one only aligned faces of that size are taken.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from ...arrays import F32, U8
from ...bundle.bundle import open_bundle
from ...bundle.manifest import Bundle
from ...errors import FacesError, UsageError
from ...faces.align import align
from ...faces.detect import Detect, DetectedFace, FacePolicy, choose_faces, open_detector
from ...faces.images import decode_photograph
from ...reading import read_file
from ..detector_engine import BundleDetector, has_detector, open_bundle_detector
from ..evaluation.embeddings_file import check_embeddings
from ..evaluation.result import VerifyResult
from ..frames import check_frame, unit_length
from ..session import Session, open_session
from .gallery_file import GalleryModel, gallery_model
from .match_threshold import MatchThreshold, find_certificates, find_threshold

logger = logging.getLogger(__name__)

Photograph = U8 | str | Path | bytes  # RGB `(H, W, 3) uint8`, an image file, or what it holds

_BATCH = 32  # faces that are embedded at once


@dataclass(frozen=True, eq=False)
class RecognisedFace:
    """A face of a photograph and its embedding.

    Attributes:
        face: Where it is.
        embedding: `(D,) float32` of unit length.
    """

    face: DetectedFace
    embedding: F32


@dataclass(frozen=True)
class FaceComparison:
    """Two faces compared.

    Attributes:
        similarity: Cosine of their embeddings.
        same: Whether it is the threshold or more.
        threshold: The threshold and where it comes from.
    """

    similarity: float
    same: bool
    threshold: MatchThreshold


class Recogniser:
    """A bundle's engine with a detector; threads may share it. Use it in a `with` statement.

    Args:
        bundle: An open bundle or its folder.
        detector: An ONNX file, or what `open_detector` gives, or a function from an RGB photograph
            `(H, W, 3) uint8` to its faces; None for the bundle's own detector, where it has one.
        engine: As `open_session` takes it.
        backend: As `open_session` takes it.
        threads: onnxruntime's threads; None for one per core.
        aligned: All images are aligned faces: no detector is used.

    Raises:
        UsageError: A detector for images that are aligned.
        FrEdgeError: What `open_session`, `open_detector` and `open_bundle_detector` raise.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        detector: Detect | str | Path | None = None,
        engine: str = "auto",
        backend: str = "auto",
        *,
        threads: int | None = None,
        aligned: bool = False,
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        if aligned and detector is not None:
            raise UsageError("aligned faces need no detector", "leave out one of the two")
        self.session: Session = open_session(self.bundle, engine, backend, threads=threads)
        try:
            self._detect = open_detector(detector) if isinstance(detector, str | Path) else detector
            if detector is None and not aligned and has_detector(self.bundle):
                self._detect = open_bundle_detector(self.bundle, backend=backend, threads=threads)
        except BaseException:
            self.session.close()
            raise
        self._thresholds: dict[float | None, MatchThreshold] = {}

    @property
    def model(self) -> GalleryModel:
        """What makes the embeddings, to which a `Gallery` belongs."""
        return gallery_model(self.bundle, self.session.precision)

    def detect(self, image: Photograph) -> list[DetectedFace]:
        """The faces of a photograph, the most confident first.

        Args:
            image: RGB `(H, W, 3) uint8`, an image file, or the bytes of one.

        Raises:
            UsageError: An array of another shape or type, or there is no detector.
            FacesError: The file is not an image.
        """
        if self._detect is None:
            raise UsageError(
                "there is no detector",
                'give one: Recogniser(bundle, "det_10g.onnx"), or put it into the bundle: `fr-edge'
                " export det_10g.onnx --role detector --out BUNDLE`",
            )
        return self._detect(_read(image))

    def embed(self, image: Photograph, faces: FacePolicy = "one", *, unit: bool = True) -> F32:
        """Embed the face of a photograph, or an aligned face where there is no detector.

        Args:
            image: RGB `(H, W, 3) uint8`, an image file, or the bytes of one.
            faces: Which of several faces: "one" refuses them, "largest" and "central" take one.
            unit: Whether the embedding is scaled to unit length; otherwise it is as the engine gives
                it (of unit length where it takes frames), and the faces are aligned on the host.

        Returns:
            `(D,) float32`.

        Raises:
            UsageError: An array of another shape or type; without a detector another size than 112,
                or than the network's own where that is larger.
            FacesError: No face, several of them, or landmarks that are not those of a face.
            ModelError: The embedding is zero or not finite.
        """
        embedding: F32 = self.embed_batch([image], faces, unit=unit)[0]
        return embedding

    def embed_batch(
        self, images: Iterable[Photograph], faces: FacePolicy = "one", *, unit: bool = True
    ) -> F32:
        """Embed one face of each of several photographs; they are read as they are needed.

        Args:
            images: N photographs, as `embed` takes them.
            faces: As `embed` takes it; not "all".
            unit: As `embed` takes it.

        Returns:
            `(N, D) float32`.

        Raises:
            FrEdgeError: As `embed`; the message names the image.
        """
        if faces == "all":
            raise UsageError('faces="all" is not one per image', "`embed_all` gives every face")
        todo, parts = enumerate(images), []
        while batch := list(islice(todo, _BATCH)):
            parts.append(self._embed_part(batch, faces, unit))
        return np.concatenate(parts) if parts else np.zeros((0, self.session.dim), np.float32)

    def embed_all(self, image: Photograph) -> list[RecognisedFace]:
        """Embed every face of a photograph.

        Args:
            image: RGB `(H, W, 3) uint8`, an image file, or the bytes of one.

        Returns:
            The faces, the most confident first; empty without a face.

        Raises:
            UsageError: An array of another shape or type, or there is no detector.
            FacesError: The file is not an image, or landmarks are not those of a face.
        """
        pixels = _read(image)
        faces = self.detect(pixels)
        if not faces:
            return []
        points = np.stack([face.points for face in faces])
        embeddings = self._embed_frame(pixels, points, _name(image, 0))
        return list(map(RecognisedFace, faces, embeddings))

    def compare(
        self,
        a: Photograph,
        b: Photograph,
        faces: FacePolicy = "one",
        *,
        far: float | None = None,
    ) -> FaceComparison:
        """Whether two photographs show the same person, at the certificate's threshold.

        Args:
            a: A photograph, as `embed` takes it.
            b: Another one.
            faces: As `embed` takes it.
            far: As `threshold` takes it.

        Raises:
            BundleError: There is no certificate with a threshold; see `threshold`.
            FrEdgeError: What `embed` raises.
        """
        threshold = self.threshold(far)
        first, second = self.embed_batch([a, b], faces)
        similarity = float(np.dot(first.astype(np.float64), second.astype(np.float64)))
        return FaceComparison(similarity, similarity >= threshold.value, threshold)

    def threshold(self, far: float | None = None) -> MatchThreshold:
        """The match threshold of this engine, from its certificate.

        A certificate is a report of `verify` that PASSED and is of exactly the bytes that are open
        here. Of several the one with most impostor pairs counts, real faces before synthetic ones.

        Args:
            far: The false accept rate; None for 1e-4, else 1e-3, as far as the pairs show them.

        Raises:
            BundleError: There is no such report, or its pairs do not show this rate.
            DataError: A report is damaged.
        """
        if far not in self._thresholds:
            self._thresholds[far] = find_threshold(self.bundle, self.session, far)
            if self._thresholds[far].synthetic:
                logger.warning(
                    "the match threshold is of synthetic faces; `verify` with --faces finds that of"
                    " people"
                )
        return self._thresholds[far]

    def close(self) -> None:
        """Free the engine and the bundle's detector; closing twice does nothing."""
        self.session.close()
        if isinstance(self._detect, BundleDetector):
            self._detect.close()

    def __enter__(self) -> "Recogniser":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def certificates(self) -> list[VerifyResult]:
        """The reports of `verify` about exactly the bytes that are open here, and still valid.

        Raises:
            DataError: A report is damaged.
        """
        return find_certificates(self.bundle, self.session)

    def _embed_part(
        self, batch: Sequence[tuple[int, Photograph]], policy: FacePolicy, unit: bool
    ) -> F32:
        names = [_name(image, number) for number, image in batch]
        side = self.bundle.spec.crop_side
        if self._detect is None:
            crops = [
                _crop(_read(image, name), name, side)
                for (_, image), name in zip(batch, names, strict=True)
            ]
            return self._embed_crops(crops, names, unit)
        faces = self._one_face_each(batch, names, policy)
        if self.session.input_kind == "frame" and unit:
            rows = [
                self._embed_frame(pixels, points, name)
                for (pixels, points), name in zip(faces, names, strict=True)
            ]
            return np.concatenate(rows)
        return self._embed_crops(
            [align(pixels, points[0], size=side) for pixels, points in faces], names, unit
        )

    def _one_face_each(
        self, batch: Sequence[tuple[int, Photograph]], names: Sequence[str], policy: FacePolicy
    ) -> Iterator[tuple[U8, F32]]:
        """Each photograph and the landmarks of its face, `(1, 5, 2) float32`."""
        for (_, image), name in zip(batch, names, strict=True):
            pixels = _read(image, name)
            try:
                chosen = choose_faces(self.detect(pixels), pixels.shape, policy)
                points = np.stack([face.points for face in chosen])
                check_frame(pixels, points)
            except FacesError as error:
                raise FacesError(f"{name}: {error.message}", error.hint) from error
            yield pixels, points

    def _embed_frame(self, pixels: U8, points: F32, name: str) -> F32:
        try:
            embeddings = self.session.embed_frame(pixels, points)
        except FacesError as error:
            raise FacesError(f"{name}: {error.message}", error.hint) from error
        check_embeddings(embeddings, [name] * len(embeddings), self.session.file)
        return embeddings

    def _embed_crops(self, crops: Sequence[U8], names: Sequence[str], unit: bool) -> F32:
        embeddings = self.session.embed(np.stack(crops))
        check_embeddings(embeddings, names, self.session.file)
        return unit_length(embeddings) if unit else embeddings


def _read(image: Photograph, name: str = "the image") -> U8:
    """The pixels of a photograph, which errors call by name; an EXIF orientation is applied."""
    if isinstance(image, str | Path):
        try:
            return decode_photograph(read_file(Path(image), "IMAGE_MB", FacesError), str(image))
        except OSError as error:
            raise FacesError(f"{image} cannot be read: {error.strerror}") from error
    if isinstance(image, bytes):
        return decode_photograph(image, name)
    if not isinstance(image, np.ndarray):
        raise UsageError(
            f"expected an image (H, W, 3) uint8, a file or its bytes, found {type(image).__name__}"
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise UsageError(
            f"expected an image (H, W, 3) uint8, RGB, found {image.shape} {image.dtype}",
            'with Pillow: np.asarray(Image.open(file).convert("RGB"))',
        )
    return image


def _crop(pixels: U8, name: str, side: int) -> U8:
    if (size := pixels.shape[:2]) != (side, side):
        raise UsageError(
            f"{name} has {size[1]}x{size[0]} pixels, expected an aligned face of {side}x{side}",
            'photographs need a detector: Recogniser(bundle, "det_10g.onnx")',
        )
    return pixels


def _name(image: Photograph, number: int) -> str:
    """What errors call an image: its file, or its place among those given."""
    return str(image) if isinstance(image, str | Path) else f"image {number}"
