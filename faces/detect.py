"""Finds faces and their five landmarks in a photograph, with a YuNet network that the user brings.

Knows the YuNet layout (W. Wu et al., Machine Intelligence Research 2023): per stride 8, 16 and 32
the outputs cls, obj, bbox and kps, one row per cell of the image; input BGR 0..255.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import ModelError

STRIDES = (8, 16, 32)
MIN_SCORE = 0.7
OVERLAP = 0.3
"""Of two boxes with more intersection over union than this, the less certain is dropped."""
_SIDE = 640
_NAMES = tuple(f"{kind}_{stride}" for kind in ("cls", "obj", "bbox", "kps") for stride in STRIDES)

F32 = npt.NDArray[np.float32]
Images = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Found:
    """A face: `box (4,)` is x, y, width, height and `points (5, 2)` the x, y of the eyes, nose tip
    and mouth corners, the image's left ones first; in pixels of the photograph."""

    score: float
    box: F32
    points: F32


Detect = Callable[[Images], list[Found]]
"""`(H, W, 3) uint8` RGB -> the faces in it, the most certain first."""


def open_detector(file: str | Path, min_score: float = MIN_SCORE) -> Detect:
    """A detector from an ONNX file; raises ModelError when it is none of the YuNet layout."""
    session = _session(Path(file))
    names = {output.name for output in session.get_outputs()}
    if not set(_NAMES) <= names or len(session.get_inputs()) != 1:
        raise ModelError(
            f"{file} is no YuNet detector: it gives {', '.join(sorted(names)[:4])}, ...",
            f"expected one image in and {', '.join(_NAMES[:4])}, ... out"
            " (face_detection_yunet of OpenCV's zoo)",
        )
    face = session.get_inputs()[0]
    height, width = (size if isinstance(size, int) else _SIDE for size in face.shape[2:])

    def detect(image: Images) -> list[Found]:
        scale = min(height / image.shape[0], width / image.shape[1])
        small = _shrunk(image, scale)
        canvas = np.zeros((height, width, 3), np.float32)
        canvas[: small.shape[0], : small.shape[1]] = small[..., ::-1]
        blob = np.ascontiguousarray(canvas.transpose(2, 0, 1)[None])
        try:
            arrays = session.run(list(_NAMES), {face.name: blob})
        except Exception as error:  # onnxruntime's own classes derive from Exception alone
            line = str(error).strip().splitlines()[0]
            raise ModelError(f"the detector {file} does not run: {line}") from error
        return _decode(dict(zip(_NAMES, arrays, strict=True)), width, scale, min_score)

    return detect


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        line = str(error).strip().splitlines()[0]
        raise ModelError(f"the detector {path} cannot be loaded: {line}") from error


def _shrunk(image: Images, scale: float) -> Images:
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    picture = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture)


def _decode(arrays: dict[str, F32], width: int, scale: float, min_score: float) -> list[Found]:
    found: list[Found] = []
    for stride in STRIDES:
        cls, obj, boxes, points = (
            arrays[f"{kind}_{stride}"][0] for kind in ("cls", "obj", "bbox", "kps")
        )
        scores = np.sqrt(np.clip(cls[:, 0], 0, 1) * np.clip(obj[:, 0], 0, 1))
        columns = width // stride
        for cell in np.flatnonzero(scores >= min_score):
            corner = np.array([cell % columns, cell // columns], np.float32)
            centre = (corner + boxes[cell, :2]) * stride
            size = np.exp(boxes[cell, 2:]) * stride
            box = np.concatenate([centre - size / 2, size]) / scale
            five = (points[cell].reshape(5, 2) + corner) * stride / scale
            score = float(scores[cell])
            found.append(Found(score, box.astype(np.float32), five.astype(np.float32)))
    found.sort(key=lambda face: -face.score)
    kept: list[Found] = []
    for face in found:
        if all(_overlap(face.box, other.box) <= OVERLAP for other in kept):
            kept.append(face)
    return kept


def _overlap(a: F32, b: F32) -> float:
    """Intersection over union of two boxes."""
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[:2] + a[2:], b[:2] + b[2:])
    common = float(np.prod(np.maximum(high - low, 0)))
    return common / max(float(np.prod(a[2:]) + np.prod(b[2:])) - common, 1e-9)
