"""Aligned faces from photographs: five landmarks are moved onto the ArcFace template.

The crop is that of insightface's `norm_crop`, which recognition networks were trained on: the
least-squares similarity transform, then OpenCV's bilinear `warpAffine` with a black border.
`detect.py` finds the landmarks.
"""

import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..arrays import F64, I32, U8
from ..errors import FacesError, UsageError
from ..files import replace_atomic, sha256
from ..progress import Track, silent
from .align_log import AlignedImage, align_log
from .archives import list_images, read_image
from .contract import ALIGNED_SIZE, ARCFACE_TEMPLATE
from .detect import Detect, DetectedFace, Detector
from .images import decode_photograph

_FRACTIONS = 32  # of a pixel: OpenCV's warpAffine rounds coordinates to these


@dataclass(frozen=True)
class AlignReport:
    """What happened to the images of a folder, by their paths relative to it.

    Attributes:
        written: Images whose face was written.
        none: Images without a face.
        several: Images with several faces; the most prominent was written.
        unreadable: Images that cannot be decoded, with the reason.
    """

    written: tuple[str, ...]
    none: tuple[str, ...]
    several: tuple[str, ...]
    unreadable: dict[str, str] = field(default_factory=dict)


def align_folder(
    source: str | Path,
    out: str | Path,
    detect: Detect,
    track: Track = silent,
    *,
    antialias: bool = False,
) -> AlignReport:
    """Write an aligned 112x112 PNG for each image of a folder, keeping folders and names.

    Args:
        source: Folder of photographs, at any depth.
        out: Folder to write into; neither may contain the other.
        detect: Finds the faces of a photograph.
        track: Progress.
        antialias: As `align` takes it.

    Raises:
        UsageError: One folder contains the other.
        FacesError: The folder has no images, or none shows a face.
        Interrupted: A signal came; the same call goes on with the photographs that are left.
    """
    source, out = Path(source), Path(out)
    if not source.is_dir():
        raise FacesError(f"there is no folder {source}", "give a folder of photographs")
    if source.resolve() in (out.resolve(), *out.resolve().parents):
        raise UsageError(f"{out} lies in {source}", "choose an --out beside it")
    keys = list_images(source)
    if not keys:
        raise FacesError(f"{source} holds no images")
    written: list[str] = []
    none: list[str] = []
    several: list[str] = []
    unreadable: dict[str, str] = {}
    with align_log(source, out, _identity(detect, antialias)) as log:
        for key in track(keys, "aligning", len(keys)):
            crop = out / Path(key).with_suffix(".png")
            done = log.recall(key, crop)
            if done is None:
                done = _align_image(source, key, crop, detect, antialias)
                log.add(key, done)
            if done.unreadable:
                unreadable[key] = done.unreadable
            else:
                (written if done.faces else none).append(key)
                several.extend([key] if done.faces > 1 else [])
    if not written:
        raise FacesError(
            f"none of the {len(keys)} images of {source} shows a face",
            "are they photographs, upright, with faces of some 30 pixels or more?",
        )
    return AlignReport(tuple(written), tuple(none), tuple(several), unreadable)


def _align_image(
    source: Path, key: str, crop: Path, detect: Detect, antialias: bool
) -> AlignedImage:
    try:
        image = decode_photograph(read_image(source, key), key)
    except FacesError as error:
        return AlignedImage(0, error.message)
    faces = detect(image)
    if faces:
        points = prominent(faces, image.shape[:2]).points
        _write(crop, align(image, points, antialias))
    return AlignedImage(len(faces))


def _identity(detect: Detect, antialias: bool) -> str:
    """What a crop depends on besides the photograph; new each time for a function of the caller's."""
    if not isinstance(detect, Detector):
        return secrets.token_hex()
    return f"{sha256(Path(detect.network.path))} {detect.describe()} antialias={antialias}"


def prominent(faces: list[DetectedFace], shape: tuple[int, ...]) -> DetectedFace:
    """The face that a photograph is of: large, and near the middle.

    insightface's rule: area minus twice the squared distance from the middle.

    Args:
        faces: At least one.
        shape: Height and width of the photograph in pixels.
    """
    middle = np.array([shape[1], shape[0]]) / 2

    def weight(face: DetectedFace) -> float:
        off = face.box[:2] + face.box[2:] / 2 - middle
        return float(face.box[2] * face.box[3] - 2 * (off @ off))

    return max(faces, key=weight)


def align(image: U8, points: npt.NDArray[Any], antialias: bool = False) -> U8:
    """Crop a face so that its landmarks lie on the ArcFace template.

    Equals insightface's `norm_crop` to one grey level. That samples large faces with gaps: of a
    face of 1,000 pixels one pixel in nine is looked at in each direction.

    Args:
        image: RGB photograph `(H, W, 3) uint8`.
        points: x, y of the eyes, nose tip and mouth corners in pixels, `(5, 2)`; whole numbers are
            centres of pixels.
        antialias: Average the photograph first, by the whole factor by which the crop is smaller.

    Returns:
        `(112, 112, 3) uint8`; black where the photograph ends.

    Raises:
        FacesError: The points are in one place or not finite.
    """
    matrix = similarity(points, np.array(ARCFACE_TEMPLATE))
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    shrink = int(1 / scale + 1e-6) if antialias else 1
    if shrink > 1:
        image = np.asarray(Image.fromarray(image).reduce(shrink))
        # The centre of a pixel of the reduced image is the centre of a square of pixels.
        centre = (shrink - 1) / 2
        matrix = np.column_stack([matrix[:, :2] * shrink, matrix @ [centre, centre, 1]])
    return _warp(image, matrix)


def similarity(source: npt.NDArray[Any], target: npt.NDArray[Any]) -> F64:
    """The least-squares similarity transform between two sets of points (S. Umeyama, PAMI 1991).

    Rotation, scale and shift, never a reflection.

    Args:
        source: `(P, 2)`.
        target: `(P, 2)`.

    Returns:
        `(2, 3) float64`: `target` is about `source @ m[:, :2].T + m[:, 2]`.

    Raises:
        FacesError: The source points are in one place or not finite.
    """
    a, b = source.astype(np.float64), target.astype(np.float64)
    x, y = a - a.mean(0), b - b.mean(0)
    spread = float((x**2).sum())
    if not 1e-9 < spread < np.inf:
        raise FacesError("the landmarks are in one place or not finite")
    u, size, v = np.linalg.svd(y.T @ x)
    sign = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(v))])
    turn = (u * sign) @ v * (size @ sign) / spread
    return np.column_stack([turn, b.mean(0) - turn @ a.mean(0)])


def _warp(image: U8, matrix: F64) -> U8:
    """OpenCV's `warpAffine` into the aligned frame: bilinear, black border, in fixed point.

    The place of every pixel is rounded to 1/32 of a pixel of `image`, as OpenCV does with 10 bits
    for each summand, and the four neighbours are weighted by whole numbers.
    """
    a, b, c, d = matrix[0, 0], matrix[0, 1], matrix[1, 0], matrix[1, 1]
    inverse = np.array([[d, -b], [-c, a]]) / (a * d - b * c)
    shift = -inverse @ matrix[:, 2]
    step = np.arange(ALIGNED_SIZE)
    along = np.rint(inverse[:, :1] * step * 1024)  # (2, columns)
    down = np.rint((inverse[:, 1:] * step + shift[:, None]) * 1024)  # (2, rows)
    limit = 2.0**30  # far outside any image
    place = np.clip(along[:, None, :] + down[:, :, None] + 16, -limit, limit).astype(np.int32) >> 5
    right, below = place & (_FRACTIONS - 1)
    left, above = _FRACTIONS - right, _FRACTIONS - below
    x, y = place >> 5
    pixels, width, first = _neighbourhood(image, x, y)
    total = (
        pixels[first] * (above * left)[..., None]
        + pixels[first + 1] * (above * right)[..., None]
        + pixels[first + width] * (below * left)[..., None]
        + pixels[first + width + 1] * (below * right)[..., None]
    )
    face: U8 = ((total + _FRACTIONS**2 // 2) // _FRACTIONS**2).astype(np.uint8)
    return face


def _neighbourhood(image: U8, x: I32, y: I32) -> tuple[U8, int, I32]:
    """Pixels in one row, the width of a line, and the index of each pixel (x, y); black outside."""
    height, width = image.shape[:2]
    x, y = np.clip(x, -2, width), np.clip(y, -2, height)  # two columns and rows of black suffice
    (x0, x1), (y0, y1) = ((int(axis.min()), int(axis.max()) + 2) for axis in (x, y))
    edges = ((max(0, -y0), max(0, y1 - height)), (max(0, -x0), max(0, x1 - width)), (0, 0))
    if np.any(edges) or not image.flags.c_contiguous:
        part = np.pad(image[max(0, y0) : y1, max(0, x0) : x1], edges)
        image, x, y, width = part, x - x0, y - y0, part.shape[1]
    return image.reshape(-1, 3), width, y * np.int32(width) + x


def _write(path: Path, face: U8) -> None:
    """All of the file or none of it; for this user alone, since it is somebody's face."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_atomic(path, private=True) as stream:
        Image.fromarray(face).save(stream, "PNG", compress_level=1)  # a quarter of the time
