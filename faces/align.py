"""Photographs become aligned faces: five landmarks are laid on the ArcFace template.

The transform is the least-squares similarity (S. Umeyama, PAMI 1991): turn, scale and shift, never
a mirror. Knows no network; detect.py finds the landmarks.
"""

import io
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from ..arrays import F64, U8
from ..errors import FacesError, UsageError
from ..progress import Track, silent
from .archives import list_images, read_image
from .contract import ALIGNED_SIZE, ARCFACE_TEMPLATE
from .detect import Detect, DetectedFace


@dataclass(frozen=True)
class AlignReport:
    """What became of the images, by their paths relative to the source.

    Of `several` faces the most prominent was taken; `unreadable` maps to the reason.
    """

    written: tuple[str, ...]
    none: tuple[str, ...]
    several: tuple[str, ...]
    unreadable: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "written": len(self.written),
            "none": list(self.none),
            "several": list(self.several),
            "unreadable": self.unreadable,
        }


def align_folder(
    source: str | Path, out: str | Path, detect: Detect, track: Track = silent
) -> AlignReport:
    """Write an aligned 112x112 PNG for each image of `source`, folders and names kept, into `out`.

    Raises UsageError when `out` lies in `source` or the other way round, FacesError when there are
    no images, or none shows a face.
    """
    source, out = Path(source), Path(out)
    if not source.is_dir():
        raise FacesError(f"there is no folder {source}", "give a folder of photographs")
    if source.resolve() in (out.resolve(), *out.resolve().parents):
        raise UsageError(f"{out} lies in {source}", "choose an --out beside it")
    keys = list_images(source)
    if not keys:
        raise FacesError(f"{source} holds no images")
    written, none, several, unreadable = [], [], [], {}
    for key in track(keys, "aligning", len(keys)):
        try:
            image = _photograph(read_image(source, key), key)
        except FacesError as error:
            unreadable[key] = error.message
            continue
        found = detect(image)
        if not found:
            none.append(key)
            continue
        if len(found) > 1:
            several.append(key)
        face = align(image, prominent(found, image.shape[:2]).points)
        _write(out / Path(key).with_suffix(".png"), face)
        written.append(key)
    if not written:
        raise FacesError(
            f"none of the {len(keys)} images of {source} shows a face",
            "are they photographs, upright, with faces of some 30 pixels or more?",
        )
    return AlignReport(tuple(written), tuple(none), tuple(several), unreadable)


def prominent(found: list[DetectedFace], shape: tuple[int, ...]) -> DetectedFace:
    """The face a photograph is of: large, and near the middle; `shape` is height, width."""
    middle = np.array([shape[1], shape[0]]) / 2

    def weight(face: DetectedFace) -> float:
        off = face.box[:2] + face.box[2:] / 2 - middle
        return float(face.box[2] * face.box[3] - 2 * (off @ off))

    return max(found, key=weight)


def align(image: U8, points: npt.NDArray[Any]) -> U8:
    """The face with these landmarks `(5, 2)` in an RGB image `(H, W, 3) uint8`, `(112, 112, 3)`.

    Raises FacesError when the points do not span a face.
    """
    back = np.linalg.inv(np.vstack([similarity(points, np.array(ARCFACE_TEMPLATE)), [0, 0, 1]]))
    # Pixels far smaller than the result's would be sampled with gaps: average them first.
    shrink = max(1, int(np.hypot(back[0, 0], back[1, 0])))
    picture = Image.fromarray(image)
    if shrink > 1:
        picture = picture.reduce(shrink)
    # Landmarks count from the middle of the first pixel, Pillow from its corner.
    turn = back[:2, :2] / shrink
    shift = (back[:2, 2] + 0.5 - back[:2, :2] @ [0.5, 0.5]) / shrink
    data = (*turn[0], shift[0], *turn[1], shift[1])
    warped = picture.transform(
        (ALIGNED_SIZE, ALIGNED_SIZE), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR
    )
    return np.asarray(warped)


def similarity(source: npt.NDArray[Any], target: npt.NDArray[Any]) -> F64:
    """The `(2, 3)` similarity that brings points `(P, 2)` closest to others, in least squares."""
    a, b = source.astype(np.float64), target.astype(np.float64)
    x, y = a - a.mean(0), b - b.mean(0)
    spread = float((x**2).sum())
    if not spread > 1e-9:
        raise FacesError("the landmarks lie in one place, or nowhere")
    u, size, v = np.linalg.svd(y.T @ x)
    sign = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(v))])
    turn = (u * sign) @ v * (size @ sign) / spread
    moved: F64 = np.hstack([turn, (b.mean(0) - turn @ a.mean(0))[:, None]])
    return moved


def _photograph(data: bytes, name: str) -> U8:
    """An encoded image as it was meant to be seen, `(H, W, 3) uint8` RGB."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Pillow warns before it refuses a bomb
            with Image.open(io.BytesIO(data)) as opened:
                return np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    except Exception as error:  # decoders of damaged bytes raise nearly anything
        raise FacesError(f"{name} cannot be read ({error})") from error


def _write(path: Path, face: U8) -> None:
    """All of the file or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    Image.fromarray(face).save(draft, "PNG")
    draft.replace(path)
