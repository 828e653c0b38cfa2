"""Aligned faces from photographs: five landmarks are moved onto the ArcFace template.

The crop is that of insightface's `norm_crop`, which recognition networks were trained on: the
least-squares similarity transform, then OpenCV's bilinear `warpAffine` with a black border.
`detect.py` finds the landmarks.
"""

import hashlib
import os
import secrets
import signal
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..arrays import F64, I32, I64, U8
from ..errors import FacesError, MachineError, UsageError
from ..files import real_path, replace_atomic, sha256
from ..progress import Track, silent
from .align_log import AlignedImage, align_log
from .archives import list_images, read_image
from .contract import ALIGNED_SIZE, InputSpec, aligned_template
from .detect import (
    Detect,
    DetectedFace,
    Detector,
    FacePolicy,
    choose_faces,
    open_detector,
)
from .images import decode_photograph, encode_png
from .split import split_folders

_CHUNK = 8  # photographs that a worker takes at once

_worker: list["_Job"] = []  # of a worker process: what it does

_FRACTIONS = 32  # of a pixel: OpenCV's warpAffine rounds coordinates to these


@dataclass(frozen=True)
class AlignReport:
    """What happened to the images of a folder, by their paths relative to it.

    Attributes:
        written: Images of which a face was written.
        none: Images without a face.
        several: Images with several faces; with the policy "one" none of them was written.
        unreadable: Images that cannot be decoded or aligned, with the reason.
        crops: Image -> the crops that were written of it, relative to the folder of the crops.
    """

    written: tuple[str, ...]
    none: tuple[str, ...]
    several: tuple[str, ...]
    unreadable: dict[str, str] = field(default_factory=dict)
    crops: dict[str, tuple[str, ...]] = field(default_factory=dict)


def align_folder(
    source: str | Path,
    out: str | Path,
    detect: Detect,
    track: Track = silent,
    *,
    antialias: bool = False,
    faces: FacePolicy = "one",
    workers: int = 1,
    split: float | None = None,
    size: int = ALIGNED_SIZE,
) -> AlignReport:
    """Write aligned PNGs for the images of a folder, keeping folders and names.

    The crop of `a/b.jpg` is `a/b.png`; with the policy "all" its crops are `a/b.jpg.1.png`,
    `a/b.jpg.2.png`, ..., the most confident face first.

    Args:
        source: Folder of photographs, at any depth.
        out: Folder to write into; neither may contain the other.
        detect: Finds the faces of a photograph.
        track: Progress.
        antialias: As `align` takes it.
        faces: Which of several faces are written, as `choose_faces` takes it.
        workers: Processes that share the work, each with the detector on one core. More than one
            needs a detector of `open_detector`, and a program whose main module can be imported.
        split: Share of the people whose crops go into OUT/calibration; those of the others go into
            OUT/judging. None for one folder.
        size: Side of the crops, in pixels, as `align` takes it.

    Raises:
        UsageError: One folder contains the other, or the workers cannot be started.
        FacesError: The folder has no images, two of them would be written to one file (before any
            is), or no face was written.
        MachineError: A worker was killed.
        Interrupted: A signal came; the same call goes on with the photographs that are left.
    """
    source, out = Path(source), Path(out)
    if not source.is_dir():
        raise FacesError(f"there is no folder {source}", "give a folder of photographs")
    if real_path(source) in (real_path(out), *real_path(out).parents):
        raise UsageError(f"{out} lies in {source}", "choose an --out beside it")
    keys = list_images(source)
    if not keys:
        raise FacesError(f"{source} holds no images")
    if faces != "all":
        _refuse_collisions(keys)
    parts = split_folders(keys, split) if split is not None else {}
    job = _Job(source, out, detect, antialias, faces, parts, size)
    done: dict[str, AlignedImage] = {}
    with align_log(source, out, _identity(job)) as log:
        known = {key: image for key in keys if (image := log.recall(key)) is not None}
        todo = [key for key in keys if key not in known]
        with _results(job, todo, workers) as results:
            for key in track(keys, "aligning", len(keys)):
                done[key] = known[key] if key in known else next(results)
                if key not in known:
                    log.add(key, done[key])
    written = tuple(key for key, image in done.items() if image.crops)
    several = tuple(key for key, image in done.items() if image.faces > 1)
    if not written:
        raise FacesError(
            f"none of the {len(keys)} images of {source} shows"
            f" {'one face alone' if several else 'a face'}",
            "--faces largest takes one of several"
            if several
            else "are they photographs, upright, with faces of some 30 pixels or more?",
        )
    return AlignReport(
        written,
        tuple(key for key, image in done.items() if not image.faces and not image.unreadable),
        several,
        {key: image.unreadable for key, image in done.items() if image.unreadable},
        {key: done[key].crops for key in written},
    )


@dataclass(frozen=True)
class _Job:
    """What is done to each photograph of a folder."""

    source: Path
    out: Path
    detect: Detect
    antialias: bool
    faces: FacePolicy
    parts: Mapping[str, str]
    size: int

    def __call__(self, key: str) -> AlignedImage:
        try:
            image = decode_photograph(read_image(self.source, key), key)
            faces = self.detect(image)
            if not faces or (self.faces == "one" and len(faces) > 1):
                return AlignedImage(len(faces))
            chosen = choose_faces(faces, image.shape, self.faces)
            aligned = [align(image, face.points, self.antialias, self.size) for face in chosen]
        except FacesError as error:
            return AlignedImage(0, error.message)
        crops = tuple(f"{key}.{number}.png" for number in range(1, len(aligned) + 1))
        if self.faces != "all":
            crops = (_crop_of(key),)
        if part := self.parts.get(key):
            crops = tuple(f"{part}/{crop}" for crop in crops)
        for crop, face in zip(crops, aligned, strict=True):
            _write(self.out / crop, face)
        return AlignedImage(len(faces), crops=crops)


def _crop_of(key: str) -> str:
    return Path(key).with_suffix(".png").as_posix()


def _refuse_collisions(keys: list[str]) -> None:
    """Raise where two photographs would be written to one file."""
    by_crop: dict[str, list[str]] = {}
    for key in keys:
        by_crop.setdefault(_crop_of(key), []).append(key)
    twice = [same for same in by_crop.values() if len(same) > 1]
    if twice:
        raise FacesError(
            f"{' and '.join(twice[0])} would both be written to {_crop_of(twice[0][0])}"
            + (f", and {len(twice) - 1} more like them" if len(twice) > 1 else ""),
            "rename one of them, or use --faces all, whose crops keep the extension in their names",
        )


@contextmanager
def _results(job: _Job, keys: list[str], workers: int) -> Iterator[Iterator[AlignedImage]]:
    """What comes of each photograph, in order."""
    if workers == 1 or not keys:
        yield map(job, keys)
        return
    if workers < 1 or not isinstance(job.detect, Detector):
        raise UsageError(
            f"{workers} workers, expected 1 or more, and a detector of `open_detector`",
            "--workers 4 uses four cores",
        )
    detector = job.detect
    settings = (detector.network.path, detector.spec, detector.min_score)
    pool = ProcessPoolExecutor(
        min(workers, len(keys)),
        get_context("spawn"),  # forking copies onnxruntime's locks as they are
        _start_worker,
        (replace(job, detect=_no_detector), *settings),
    )
    try:
        yield pool.map(_work, keys, chunksize=_CHUNK)
    except BrokenProcessPool as error:
        raise MachineError(
            "a worker was killed, or could not start", "fewer --workers need less memory"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(job: _Job, path: Path, spec: InputSpec, min_score: float) -> None:
    """Open the detector in a new process, which ends with the one that started it."""
    for number in (signal.SIGINT, signal.SIGHUP):  # a terminal sends them to all; the first decides
        signal.signal(number, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()
    detector = replace(open_detector(path, threads=1), spec=spec, min_score=min_score)
    _worker.append(replace(job, detect=detector))


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(key: str) -> AlignedImage:
    return _worker[0](key)


def _no_detector(image: U8) -> list[DetectedFace]:
    """In the place of a detector, which cannot be sent to another process."""
    raise AssertionError


def _identity(job: _Job) -> str:
    """What a crop depends on besides the photograph; new each time for a function of the caller's."""
    if not isinstance(job.detect, Detector):
        return secrets.token_hex()
    network = sha256(Path(job.detect.network.path))
    parts = (
        hashlib.sha256(repr(sorted(job.parts.items())).encode()).hexdigest() if job.parts else ""
    )
    return (
        f"{network} {job.detect.describe()} antialias={job.antialias} faces={job.faces}"
        f"{f' size={job.size}' if job.size != ALIGNED_SIZE else ''} {parts}"
    ).rstrip()


def align(
    image: U8, points: npt.NDArray[Any], antialias: bool = False, size: int = ALIGNED_SIZE
) -> U8:
    """Crop a face so that its landmarks lie on the ArcFace template.

    Equals insightface's `norm_crop` to one grey level. That samples large faces with gaps: of a
    face of 1,000 pixels one pixel in nine is looked at in each direction.

    Args:
        image: RGB photograph `(H, W, 3) uint8`.
        points: x, y of the eyes, nose tip and mouth corners in pixels, `(5, 2)`; whole numbers are
            centres of pixels.
        antialias: Average the photograph first, by the whole factor by which the crop is smaller.
        size: Side of the crop, in pixels; see `aligned_template`.

    Returns:
        `(size, size, 3) uint8`; black where the photograph ends.

    Raises:
        FacesError: The points are in one place or not finite.
    """
    matrix = similarity(points, aligned_template(size))
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    shrink = int(1 / scale + 1e-6) if antialias else 1
    if shrink > 1:
        image = np.asarray(Image.fromarray(image).reduce(shrink))
        # The centre of a pixel of the reduced image is the centre of a square of pixels.
        centre = (shrink - 1) / 2
        matrix = np.column_stack([matrix[:, :2] * shrink, matrix @ [centre, centre, 1]])
    return _warp(image, matrix, size)


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


def _warp(image: U8, matrix: F64, size: int) -> U8:
    """OpenCV's `warpAffine` into the aligned frame: bilinear, black border, in fixed point.

    The place of every pixel is rounded to 1/32 of a pixel of `image`, as OpenCV does with 10 bits
    for each summand, and the four neighbours are weighted by whole numbers.
    """
    a, b, c, d = matrix[0, 0], matrix[0, 1], matrix[1, 0], matrix[1, 1]
    inverse = np.array([[d, -b], [-c, a]]) / (a * d - b * c)
    shift = -inverse @ matrix[:, 2]
    step = np.arange(size)
    along = np.rint(inverse[:, :1] * step * 1024)  # (2, columns)
    down = np.rint((inverse[:, 1:] * step + shift[:, None]) * 1024)  # (2, rows)
    limit = 2.0**29  # far outside any image
    along, down = (np.clip(axis, -limit, limit).astype(np.int32) for axis in (along, down + 16))
    place = (along[:, None, :] + down[:, :, None]) >> 5
    right, below = place & (_FRACTIONS - 1)
    left, above = _FRACTIONS - right, _FRACTIONS - below
    x, y = place >> 5
    pixels, width, first = _neighbourhood(image, x, y)
    weights = [part.ravel() for part in (above * left, above * right, below * left, below * right)]
    offsets = (0, 3, 3 * width, 3 * width + 3)  # of the four neighbours' bytes
    face = np.empty((first.size, 3), np.uint8)
    for channel in range(3):
        total = np.full(first.size, _FRACTIONS**2 // 2, np.int32)
        for offset, weight in zip(offsets, weights, strict=True):
            total += pixels.take(first + (offset + channel)) * weight
        face[:, channel] = total // _FRACTIONS**2
    return face.reshape(size, size, 3)


def _neighbourhood(image: U8, x: I32, y: I32) -> tuple[U8, int, I64]:
    """Bytes in one row, pixels of a line, and the index of each pixel's first byte; black outside."""
    height, width = image.shape[:2]
    x, y = np.clip(x, -2, width), np.clip(y, -2, height)  # two columns and rows of black suffice
    (x0, x1), (y0, y1) = ((int(axis.min()), int(axis.max()) + 2) for axis in (x, y))
    edges = ((max(0, -y0), max(0, y1 - height)), (max(0, -x0), max(0, x1 - width)), (0, 0))
    if np.any(edges) or not image.flags.c_contiguous:
        part = np.pad(image[max(0, y0) : y1, max(0, x0) : x1], edges)
        image, x, y, width = part, x - x0, y - y0, part.shape[1]
    return image.ravel(), width, 3 * (y.astype(np.int64) * width + x).ravel()


def _write(path: Path, face: U8) -> None:
    """All of the file or none of it; for this user alone, since it is somebody's face.

    It can be made again, so the disk is not waited for.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_atomic(path, private=True, durable=False) as stream:
        stream.write(encode_png(face))
