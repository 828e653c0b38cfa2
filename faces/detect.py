"""Finds faces and their five landmarks in a photograph, with a detector that the user brings.

The layouts of `detectors/` are tried on the network's outputs for a black picture: shapes decide,
so names and fixed or free axes do not matter.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from ..arrays import F32, U8
from ..errors import FacesError, ModelError, UsageError
from .contract import InputSpec, with_overrides
from .detectors.base import Candidates, Floats, Layout, Outputs, Size
from .detectors.centerface import CENTERFACE
from .detectors.end_to_end import LISTS, ROWS
from .detectors.onnx_detector import OnnxDetector, load_detector, run_detector, with_free_size
from .detectors.retinaface import RETINAFACE, RETINAFACE_MAPS
from .detectors.scrfd import SCRFD
from .detectors.yolo import YOLO, YOLO_MAPS
from .detectors.yunet import YUNET

LAYOUTS = (  # in the order in which they are tried
    YUNET, SCRFD, RETINAFACE, RETINAFACE_MAPS, YOLO, YOLO_MAPS, CENTERFACE, LISTS, ROWS,
)  # fmt: skip

_STEP = 32  # pixels: the largest stride that all families have

_MIN_SIDE = 192  # of a canvas's longest side: smaller photographs are enlarged to it

OVERLAP = 0.3  # intersection over union from which the less confident of two boxes is dropped


@dataclass(frozen=True, eq=False)
class DetectedFace:
    """A face, in pixels of the photograph.

    Attributes:
        score: Confidence, 0 to 1.
        box: x, y, width, height, `(4,) float32`.
        points: x, y of the eyes, nose tip and mouth corners, the image's left ones first,
            `(5, 2) float32`.
    """

    score: float
    box: F32
    points: F32


FacePolicy = Literal["one", "largest", "central", "all"]  # which of several faces are meant

FACE_POLICIES: tuple[FacePolicy, ...] = ("one", "largest", "central", "all")

Detect = Callable[[U8], list[DetectedFace]]  # RGB (H, W, 3) -> faces, the most confident first


@dataclass(frozen=True, eq=False)
class Detector:
    """A detector and how its outputs are read; it is called with a photograph.

    Attributes:
        network: The loaded file.
        layout: How its outputs are read.
        spec: How pixels are fed to it.
        min_score: Confidence from which a candidate is a face.
    """

    network: OnnxDetector
    layout: Layout
    spec: InputSpec
    min_score: float

    def __call__(self, image: U8) -> list[DetectedFace]:
        canvas, scale = self.fit(image)
        outputs = run_detector(self.network, canvas, self.spec)
        candidates = _decode(self.layout, outputs, canvas.shape[:2], self.min_score)
        if candidates is None:
            raise ModelError(
                f"the outputs of {self.network.path} are not in the layout {self.layout.name} any"
                f" more: {_listed(outputs)}"
            )
        return _suppressed(candidates, scale)

    def fit(self, image: U8) -> tuple[U8, float]:
        """What the network is fed with for a photograph.

        Args:
            image: RGB `(H, W, 3) uint8`.

        Returns:
            The canvas, RGB `(h, w, 3) uint8`, and the scale at which the photograph lies in its top
            left.
        """
        size, scale = _fit_canvas(image, self.network)
        return _letterbox(image, size, scale), scale

    def describe(self) -> str:
        """One line: layout, largest input and lowest score."""
        spec = replace(self.spec, height=self.network.size[0], width=self.network.size[1])
        text = f"{self.layout.name}, {spec.describe()}, score from {self.min_score:g}"
        return f"{text}, small photographs at their size" if self.network.free else text


def open_detector(
    file: str | Path,
    min_score: float | None = None,
    *,
    mean: str | None = None,
    std: str | None = None,
    channels: str | None = None,
    threads: int | None = None,
) -> Detector:
    """Open a detector.

    Args:
        file: An ONNX file.
        min_score: Confidence from which a candidate is a face; the layout's by default.
        mean: One number or three, in grey levels; the layout's by default, 0 where the network
            normalises its input itself.
        std: As the mean.
        channels: `RGB` or `BGR`; the layout's by default.
        threads: onnxruntime's threads; None for one per core.

    Raises:
        ModelError: The file cannot be used or has no known layout.
        UsageError: A text cannot be read.
    """
    network = load_detector(Path(file), threads)
    canvas = np.zeros((*network.size, 3), np.uint8)
    outputs = run_detector(network, canvas, YUNET.spec)
    for layout in LAYOUTS:
        if _decode(layout, outputs, network.size, 1.0) is None:
            continue
        raw = {"mean": "0", "std": "1"} if network.raw else {}
        typed = {"mean": mean, "std": std, "channels": channels}
        overrides = {**raw, **{k: v for k, v in typed.items() if v is not None}}
        spec = with_overrides(layout.spec, **overrides)
        lowest = layout.min_score if min_score is None else min_score
        return Detector(_freed(network, layout, threads), layout, spec, lowest)
    known = "".join(f"\n  {layout.name}: {layout.outputs}" for layout in LAYOUTS)
    raise ModelError(
        f"{file} has no known layout of a detector with five landmarks."
        f" For a {network.size[0]}x{network.size[1]} picture it gives {_listed(outputs)}",
        f"known layouts:{known}",
    )


def _freed(network: OnnxDetector, layout: Layout, threads: int | None) -> OnnxDetector:
    """The network for canvases of any size, where it can be seen that it takes them.

    Its outputs have to follow the cells of a small canvas. Where suppression is inside they do not
    follow any, and the network keeps the size that its file gives.
    """
    if layout in (LISTS, ROWS):
        return replace(network, free=False)
    candidate = network if network.free else with_free_size(network, threads)
    if candidate is None:
        return network
    size = (_MIN_SIDE, _MIN_SIDE + _STEP)
    try:
        outputs = run_detector(candidate, np.zeros((*size, 3), np.uint8), layout.spec)
    except ModelError:
        return replace(network, free=False)
    decoded = _decode(layout, outputs, size, 1.0)
    return candidate if decoded is not None else replace(network, free=False)


def _fit_canvas(image: U8, network: OnnxDetector) -> tuple[Size, float]:
    """Height and width of the canvas for a photograph, and the scale at which it is put there.

    Where the network allows, it is the photograph's own size, in steps and within limits: a small one
    is not enlarged to the largest canvas, which shows nothing more of its faces.
    """
    high, wide = image.shape[:2]
    if not network.free:
        return network.size, min(network.size[0] / high, network.size[1] / wide)
    longest = max(high, wide)
    scale = min(max(1.0, _MIN_SIDE / longest), min(network.size) / longest)
    height, width = (max(_STEP, -(-round(side * scale) // _STEP) * _STEP) for side in (high, wide))
    return (height, width), scale


def choose_faces(
    faces: list[DetectedFace], shape: tuple[int, ...], policy: FacePolicy
) -> list[DetectedFace]:
    """The faces of a photograph that are meant.

    Args:
        faces: All that were found, the most confident first.
        shape: Height and width of the photograph in pixels.
        policy: "one" where there must be exactly one, "largest" by its box's area, "central" whose
            box's middle is nearest to the photograph's, or "all".

    Returns:
        One face or more.

    Raises:
        FacesError: There is no face, or several with "one".
        UsageError: An unknown policy.
    """
    if policy not in FACE_POLICIES:
        raise UsageError(f"no policy {policy!r}", f"policies: {', '.join(FACE_POLICIES)}")
    if not faces:
        raise FacesError("no face", "is it upright, with a face of some 30 pixels or more?")
    if policy == "one" and len(faces) > 1:
        boxes = "; ".join(_box(face) for face in faces[:4]) + ("; ..." if len(faces) > 4 else "")
        raise FacesError(
            f"{len(faces)} faces, expected one: {boxes}",
            "choose the largest or central one, or all",
        )
    if policy == "largest":
        return [max(faces, key=lambda face: float(face.box[2] * face.box[3]))]
    if policy == "central":
        middle = np.array([shape[1], shape[0]]) / 2
        return [
            min(
                faces, key=lambda face: float(np.hypot(*(face.box[:2] + face.box[2:] / 2 - middle)))
            )
        ]
    return faces


def _box(face: DetectedFace) -> str:
    left, top, width, height = face.box
    return f"{width:.0f}x{height:.0f} at {left:.0f},{top:.0f}"


def _letterbox(image: U8, size: Size, scale: float) -> U8:
    """The scaled image in the top left of a black canvas."""
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    small = image
    if image.shape[:2] != (height, width):
        photograph = Image.fromarray(image)
        # Averaged by a whole factor first: a third of the time.
        small = np.asarray(
            photograph.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=1.0)
        )
    canvas = np.zeros((*size, 3), np.uint8)
    canvas[:height, :width] = small
    return canvas


def _decode(layout: Layout, outputs: Outputs, size: Size, min_score: float) -> Candidates | None:
    if not outputs:
        return None
    with np.errstate(over="ignore", invalid="ignore"):  # a broken network's numbers; dropped below
        return layout.decode(outputs, size, min_score)


def _suppressed(candidates: Candidates, scale: float) -> list[DetectedFace]:
    """Faces in pixels of the photograph, the most confident first, without those that overlap."""
    boxes = np.concatenate(
        [candidates.boxes[:, :2], candidates.boxes[:, 2:] - candidates.boxes[:, :2]], axis=1
    )
    sane = (
        np.isfinite(boxes).all(1)
        & np.isfinite(candidates.points).all((1, 2))
        & (boxes[:, 2:] > 0).all(1)
    )
    order = np.flatnonzero(sane)
    order = order[np.argsort(-candidates.scores[order], kind="stable")]
    faces: list[DetectedFace] = []
    while len(order):
        best, order = order[0], order[1:]
        box, points = boxes[best] / scale, candidates.points[best] / scale
        faces.append(
            DetectedFace(
                float(candidates.scores[best]), box.astype(np.float32), points.astype(np.float32)
            )
        )
        order = order[_overlaps(candidates.boxes[best], candidates.boxes[order]) <= OVERLAP]
    return faces


def _overlaps(box: Floats, others: Floats) -> Floats:
    """Intersection over union of a box with others `(K, 4)`, as corners."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    common = np.maximum(high - low, 0).prod(axis=1)
    areas = (others[:, 2:] - others[:, :2]).prod(axis=1)
    shares: Floats = common / (areas + (box[2:] - box[:2]).prod() - common)
    return shares


def _listed(outputs: Outputs) -> str:
    shown = [f"{name} {tuple(array.shape)}" for name, array in outputs.items()]
    more = f" and {len(shown) - 12} more" if len(shown) > 12 else ""
    return (", ".join(shown[:12]) or "nothing in floating point") + more
