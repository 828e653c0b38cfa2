"""Frames with landmarks, as frame engines take them; and aligned faces laid out as such a frame."""

import numpy as np
from PIL import Image

from ..arrays import F32, U8
from ..errors import FacesError, UsageError
from ..faces.align import align, similarity
from ..faces.contract import ALIGNED_SIZE, ARCFACE_TEMPLATE, aligned_template, resize_face
from ..graph.frame_input import MIN_SPREAD

_FRAME = (480, 640)  # height and width of drawn frames
_MIN_LIKENESS = 0.3  # 1 for the template itself, .6 for a profile, .05 for mirrored landmarks


def check_frame(frame: U8, landmarks: F32) -> None:
    """Raise unless faces can be cut out of a frame.

    Args:
        frame: `(H, W, 3) uint8`, RGB, expected.
        landmarks: `(N, 5, 2) float32` expected: x, y of the eyes, nose tip and mouth corners in
            pixels, the eye and corner that are left in the frame first.

    Raises:
        UsageError: Another shape or type.
        FacesError: Landmarks are not finite, in one place, outside the frame, or not those of a face.
    """
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
        raise UsageError(
            f"expected a frame (H, W, 3) uint8, RGB, found {frame.shape} {frame.dtype}",
            "`fr_edge.faces.images` decodes photographs so",
        )
    if landmarks.dtype != np.float32 or landmarks.shape[1:] != (5, 2):
        raise UsageError(
            f"expected landmarks (N, 5, 2) float32, found {landmarks.shape} {landmarks.dtype}",
            "five points x, y per face: eyes, nose tip, mouth corners",
        )
    for number, points in enumerate(landmarks):
        if problem := _problem(frame, points):
            raise FacesError(
                f"face {number}: {problem}",
                "expected x, y in pixels of the eyes, nose tip and mouth corners, in this order,"
                " left in the frame first",
            )


def _problem(frame: U8, points: F32) -> str:
    """Why the landmarks of one face cannot be used; "" where they can."""
    if not np.isfinite(points).all():
        return "the landmarks are not finite"
    x, y = points - points.mean(0), np.array(ARCFACE_TEMPLATE) - np.mean(ARCFACE_TEMPLATE, 0)
    spread = float((x.astype(np.float64) ** 2).sum())
    if spread <= MIN_SPREAD:
        return "the landmarks are in one place"
    height, width = frame.shape[:2]
    if not ((points.mean(0) >= 0) & (points.mean(0) < (width, height))).all():
        return f"the landmarks are outside the frame of {width}x{height} pixels"
    along, across = (x * y).sum(), (x[:, 0] * y[:, 1] - x[:, 1] * y[:, 0]).sum()
    likeness = (along**2 + across**2) / (spread * (y**2).sum())
    if likeness < _MIN_LIKENESS:
        return f"the landmarks are not those of a face: they resemble one by {likeness:.2f} of 1"
    return ""


def align_faces(frame: U8, landmarks: F32, side: int = ALIGNED_SIZE) -> U8:
    """Cut faces out of a frame on the host, as insightface's `norm_crop` does.

    Args:
        frame: `(H, W, 3) uint8`, RGB.
        landmarks: `(N, 5, 2) float32`.
        side: Of the faces, in pixels: the network's `InputSpec.crop_side`.

    Returns:
        `(N, side, side, 3) uint8`.
    """
    faces = [align(frame, points, size=side) for points in landmarks]
    return np.stack(faces) if faces else np.zeros((0, side, side, 3), np.uint8)


def needed_part(frame: U8, landmarks: F32, side: int = ALIGNED_SIZE) -> tuple[U8, F32]:
    """The part of a frame that its faces are sampled from, so that the rest is not converted.

    Args:
        frame: `(H, W, 3) uint8`, RGB.
        landmarks: `(N, 5, 2) float32`.
        side: Of the faces, in pixels: the network's `InputSpec.crop_side`.

    Returns:
        A part of the frame, which may be a view of it, and the landmarks in it.
    """
    if not len(landmarks):
        return frame[:1, :1], landmarks
    edge = side  # one pixel more than is sampled
    corners = np.array([[-1, -1], [edge, -1], [-1, edge], [edge, edge]], np.float64)
    places = []
    for points in landmarks:
        matrix = similarity(points, aligned_template(side))
        places.append((corners - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T)
    lowest, highest = np.floor(np.min(places, (0, 1))), np.ceil(np.max(places, (0, 1)))
    size = np.array(frame.shape[1::-1])
    left, top = np.clip(lowest - 1, 0, size - 1).astype(int)
    right, bottom = np.clip(highest + 2, 1, size).astype(int)
    return frame[top:bottom, left:right], landmarks - np.array([left, top], np.float32)


def fit_frame(frame: U8, smallest: tuple[int, ...], largest: tuple[int, ...], file: str) -> U8:
    """A frame of a size that an engine takes: black is added at the right and below.

    Args:
        frame: `(H, W, 3) uint8`.
        smallest: Height and width that the engine takes at least, in pixels.
        largest: Height and width at most.
        file: The engine's name.

    Raises:
        UsageError: The frame is too large.
    """
    height, width = frame.shape[:2]
    if height > largest[0] or width > largest[1]:
        raise UsageError(
            f"{file} takes frames of {largest[1]}x{largest[0]} pixels at most; the faces of this one"
            f" need {width}x{height}",
            "scale the frame and its landmarks, or build with a larger --frame-size",
        )
    missing = (max(0, smallest[0] - height), max(0, smallest[1] - width))
    return np.pad(frame, ((0, missing[0]), (0, missing[1]), (0, 0))) if any(missing) else frame


def tile_faces(images: U8, side: int = ALIGNED_SIZE) -> tuple[U8, F32]:
    """Lay aligned faces side by side, with the template's landmarks on each.

    A frame engine cuts out of this exactly the faces; smaller ones are enlarged first.

    Args:
        images: `(N, S, S, 3) uint8`, N at least 1.
        side: Of the faces that the engine cuts out, in pixels: the network's `InputSpec.crop_side`.

    Returns:
        A frame `(side, side N, 3) uint8`, and landmarks `(N, 5, 2) float32`.
    """
    if images.shape[1] != side:
        images = np.stack([resize_face(face, side) for face in images])
    frame = np.ascontiguousarray(images.transpose(1, 0, 2, 3)).reshape(side, -1, 3)
    shift = np.zeros((len(images), 1, 2), np.float32)
    shift[:, 0, 0] = side * np.arange(len(images))
    return frame, aligned_template(side).astype(np.float32) + shift


def draw_frame(face: U8, random: np.random.Generator) -> tuple[U8, F32]:
    """Put an aligned face into a frame: of another size, turned, anywhere, its landmarks not exact.

    Args:
        face: `(112, 112, 3) uint8`.
        random: Decides where; the size is .5 to 4 times that of the face.

    Returns:
        A frame `(480, 640, 3) uint8`, and landmarks `(1, 5, 2) float32` in it.
    """
    scale, turn = random.uniform(0.5, 4), random.uniform(-0.6, 0.6)
    matrix = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    middle = random.uniform(0.3, 0.7, 2) * (_FRAME[1], _FRAME[0])
    shift = middle - matrix @ np.full(2, ALIGNED_SIZE / 2)
    inverse = np.linalg.inv(matrix)
    rows = np.column_stack([inverse, inverse @ (0.5 - shift - matrix @ [0.5, 0.5])])
    image = Image.fromarray(face).transform(
        _FRAME[::-1],
        Image.Transform.AFFINE,
        tuple(rows.reshape(-1)),
        Image.Resampling.BILINEAR,
        fillcolor=(127, 127, 127),
    )
    points = np.array(ARCFACE_TEMPLATE) @ matrix.T + shift
    points += random.normal(0, scale, points.shape)
    return np.asarray(image), points[None].astype(np.float32)


def unit_length(embeddings: F32) -> F32:
    """Embeddings of unit length; one of zeros stays one.

    Args:
        embeddings: `(N, D) float32`.
    """
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    unit: F32 = embeddings / np.maximum(norms, np.float32(1e-12))
    return unit
