"""`benchmark --photos`: from an encoded frame to decisions about its faces, step by step.

Frames are composed of the photographs' own faces, so that each holds as many as are wanted. They are
JPEG in memory: a camera's driver or a network gives nothing less, and no disk is timed.
"""

import hashlib
import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..._version import __version__
from ...arrays import F32, U8
from ...bundle.bundle import open_bundle, transaction
from ...bundle.manifest import Bundle
from ...bundle.provenance import ImageDigests, Provenance
from ...documents import encode_json
from ...errors import FacesError, UsageError
from ...faces.detect import DetectedFace
from ...faces.images import decode_photograph
from ...faces.photographs import Photographs
from ...faces.stored_detector import DETECTOR_SPEC
from ...metrics.verification import cosines
from ...progress import Track, silent
from ..detector_engine import BundleDetector, open_bundle_detector
from ..evaluation.gates import VerdictReason
from ..evaluation.judgement import precision_reasons
from ..evaluation.result import OpenedFile, check_unchanged, opened_file
from ..fingerprint import machine_fingerprint
from ..frames import align_faces, unit_length
from ..machine.monitor import watch
from ..recognition.face_gallery import Gallery
from ..recognition.gallery_file import gallery_model
from ..session import Session, open_session, session_provenance
from .benchmark import describe_machine
from .result import BENCHMARK_SCHEMA, MIN_RUNS, BenchmarkRun, summarize_run
from .setting import Setting
from .statistics import latencies_of
from .timing import time_runs

STEPS = ("decode", "detect", "align", "embed", "match")
FRAME_FACES = (1, 6, 20)
FRAME_SIZE = (1080, 1920)  # height and width in pixels

_DURATION_S = 10.0
_MAX_FACES = 100  # of one frame
_QUALITY = 90  # of the frames' JPEG
_AROUND = 0.6  # of a face's box on every side, that comes along with it
_WANTED = 64  # different faces that are looked for
_THRESHOLD = 0.3  # of the search; its value costs no time
_BACKGROUND = 110  # grey level


@dataclass(frozen=True)
class FrameRun:
    """Frames of so many faces; docs/benchmark.schema.json describes every field.

    Attributes:
        faces: Put into each frame.
        found: That the detector finds in it.
        verdict: "VALID" or "INVALID".
        reasons: Why the figures cannot be trusted.
        frames_per_s: One frame after the other.
        frames_per_s_interval_95: Its 95 % interval; None where the runs show none.
        latency_ms: Of a frame: mean, min, max and percentiles by name.
        interval_95_ms: Percentile by name -> its 95 % interval.
        steps_ms: Median of decode, detect, align, embed and match, per frame.
        frames: How many were timed.
        duration_s: Of the timing.
        cpu_wait_share: Share of the time that this process waited for a core.
    """

    faces: int
    found: int
    verdict: str
    frames_per_s: float
    latency_ms: Mapping[str, float | None]
    interval_95_ms: Mapping[str, tuple[float, float] | None]
    steps_ms: Mapping[str, float]
    reasons: tuple[str, ...] = ()
    frames: int = 0
    duration_s: float = 0.0
    cpu_wait_share: float | None = None
    frames_per_s_interval_95: tuple[float, float] | None = None


@dataclass(frozen=True)
class FrameBenchmark:
    """What `benchmark_frames` measured.

    Attributes:
        engine: The face network's precision.
        backend: Of the face network.
        verdict: "VALID" when all runs are.
        frames: A run for each number of faces.
        frame_size: Height and width in pixels.
        gallery: Faces that each is compared with.
        artifact: The face network's file.
        input_kind: What the engine takes: "tensor", "crop" or "frame", which aligns in the engine.
        detector: The detector's file.
        detector_engine: The detector's precision.
        detector_backend: What runs the detector.
        family: Of the detector.
        timed: From what to what the clock ran.
        report: The report's path within the bundle.
    """

    engine: str
    backend: str
    verdict: str
    frames: tuple[FrameRun, ...]
    frame_size: tuple[int, int]
    gallery: int
    artifact: OpenedFile
    input_kind: str
    detector: OpenedFile
    detector_engine: str
    detector_backend: str
    family: str
    timed: str
    time: str = ""
    device: Mapping[str, Any] = field(default_factory=dict)
    report: str = ""
    provenance: Provenance | None = None
    fr_edge: str = __version__
    schema: int = BENCHMARK_SCHEMA


def benchmark_frames(
    bundle: Bundle | str | Path,
    photographs: Photographs,
    engine: str = "auto",
    backend: str = "auto",
    *,
    detector: str = "auto",
    faces: Sequence[int] = FRAME_FACES,
    frame_size: tuple[int, int] = FRAME_SIZE,
    gallery: int = 10_000,
    duration_s: float = _DURATION_S,
    warmup_s: float = 5.0,
    track: Track = silent,
    before_storing: Callable[[FrameBenchmark], None] = lambda result: None,
) -> FrameBenchmark:
    """Time frames from JPEG bytes to matches, and write `reports/benchmark-frames-...json`.

    Args:
        bundle: An open bundle with a detector, or its folder.
        photographs: Whose faces the frames are composed of.
        engine: The face network's, as `open_session`.
        backend: As `open_session`; of both.
        detector: The detector's precision, as `open_bundle_detector`.
        faces: Faces per frame, a run each.
        frame_size: Height and width of the frames in pixels.
        gallery: Enrolled faces, drawn at random, that each face is searched among.
        duration_s: Of each run, seconds; longer where that holds too few frames.
        warmup_s: Longest warm-up of each run, seconds.
        track: Shows progress.
        before_storing: Called with the result before it is written into the bundle.

    Returns:
        The figures, and whether they can be trusted.

    Raises:
        UsageError: Impossible options.
        BundleError: The bundle has no detector, an engine was not built, or a file was changed.
        MachineError: The backend cannot run here, or the bundle cannot be written.
        FacesError: The detector finds no face in the photographs.
    """
    _check(faces, frame_size, gallery, duration_s)
    bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    with (
        open_bundle_detector(bundle, detector, backend) as detect,
        open_session(bundle, engine, backend) as session,
    ):
        claims = (*precision_reasons(bundle, session), *precision_reasons(bundle, detect))
        images = ImageDigests()
        patches = _patches(photographs, detect, images, track)
        people = _gallery(bundle, session, gallery)
        frames = {count: _encoded(_compose(patches, count, frame_size)) for count in faces}
        runs = []
        for count in track(faces, "timing", len(faces)):
            chain = _Chain(bundle, detect, session, people, frames[count])
            runs.append(_time(chain, count, duration_s, warmup_s, claims))
        result = FrameBenchmark(
            engine=session.precision,
            backend=session.backend,
            verdict="VALID" if all(run.verdict == "VALID" for run in runs) else "INVALID",
            frames=tuple(runs),
            frame_size=frame_size,
            gallery=gallery,
            artifact=opened_file(session),
            input_kind=session.input_kind,
            detector=OpenedFile(detect.artifact, detect.file, detect.sha256),
            detector_engine=detect.precision,
            detector_backend=detect.backend,
            family=detect.spec.family,
            timed="from a frame's JPEG bytes to the matches of its faces, one frame after the other",
            time=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            device=describe_machine(),
            provenance=session_provenance(
                bundle, session, images=images, also=(DETECTOR_SPEC, detect.file)
            ),
        )
    settings = (faces, frame_size, gallery, duration_s, machine_fingerprint(result.backend))
    evidence = (result.artifact, result.detector, settings)
    digest = hashlib.sha256(encode_json(evidence, indent=0)).hexdigest()[:8]
    name = f"reports/benchmark-frames-{result.engine}-{result.backend}-{digest}.json"
    result = replace(result, report=name)
    try:
        before_storing(result)
    finally:
        _write(bundle, result)
    return result


def _check(faces: Sequence[int], size: tuple[int, int], gallery: int, duration_s: float) -> None:
    if not faces or not all(1 <= count <= _MAX_FACES for count in faces):
        raise UsageError(f"faces per frame are 1 to {_MAX_FACES}, found {list(faces)}")
    if not all(64 <= side <= 8192 for side in size):
        raise UsageError(f"a frame has 64 to 8192 pixels a side, found {size[0]}x{size[1]}")
    if not 1 <= gallery <= 1_000_000:
        raise UsageError(f"a gallery has 1 to 1,000,000 faces, found {gallery}")
    if duration_s <= 0:
        raise UsageError(f"the duration is above 0, found {duration_s:g} s")


class _Chain:
    """One frame through every step; what each step took is kept."""

    def __init__(
        self,
        bundle: Bundle,
        detect: BundleDetector,
        session: Session,
        gallery: Gallery,
        frame: bytes,
    ) -> None:
        self._side = bundle.spec.crop_side
        self._detect, self._session, self._gallery = detect, session, gallery
        self._frame = frame
        self.ns: list[list[int]] = []
        self.first = self._embed(0)
        self.ns.clear()
        self.min_cosine = 1.0
        self._last = self.first

    def run(self, index: int) -> None:
        self._last = self._embed(index)

    def check(self, index: int, ns: int) -> None:
        """Compare a frame's embeddings with the first ones; between the timed runs."""
        same = len(self._last) == len(self.first)
        cosine = float(cosines(self.first, self._last).min(initial=1.0)) if same else 0.0
        self.min_cosine = min(self.min_cosine, cosine)

    def _embed(self, index: int) -> F32:
        marks = [time.perf_counter_ns()]

        def mark() -> None:
            marks.append(time.perf_counter_ns())

        image = decode_photograph(self._frame, "a frame")
        mark()
        found = self._detect(image)
        points = np.array([face.points for face in found], np.float32).reshape(-1, 5, 2)
        mark()
        in_engine = self._session.input_kind == "frame"
        crops = None if in_engine else align_faces(image, points, self._side)
        mark()
        if crops is None:
            embeddings = self._session.embed_frame(image, points)
        else:
            embeddings = unit_length(self._session.embed(crops))
        mark()
        if len(embeddings):
            self._gallery.search(embeddings, _THRESHOLD)
        mark()
        self.ns.append([b - a for a, b in zip(marks, marks[1:], strict=False)])
        return embeddings


def _time(
    chain: _Chain, faces: int, duration_s: float, warmup_s: float, claims: Sequence[VerdictReason]
) -> FrameRun:
    with watch(duration_s=duration_s) as trace:
        timing = time_runs(chain.run, duration_s, MIN_RUNS, warmup_s=warmup_s, between=chain.check)
    trace.load_s = timing.span_s
    found = len(chain.first)
    problems = tuple(claim.reason for claim in claims)
    problems += () if found == faces else (f"the detector finds {found} of {faces} faces",)
    run: BenchmarkRun = summarize_run(
        Setting(), timing, duration_s, chain.min_cosine, trace, None, problems
    )
    timed = np.array(chain.ns[-run.runs :], np.int64)  # without the warm-up
    steps = {
        name: latencies_of(column / 1e6).percentile(50)
        for name, column in zip(STEPS, timed.T, strict=True)
    }
    return FrameRun(
        faces,
        found,
        run.verdict,
        run.throughput_per_s,
        run.latency_ms,
        run.interval_95_ms,
        steps,
        run.reasons,
        run.runs,
        run.duration_s,
        run.cpu_wait_share,
        run.throughput_interval_95,
    )


def _patches(
    photographs: Photographs, detect: BundleDetector, images: ImageDigests, track: Track
) -> list[U8]:
    """Faces with some of their surroundings, largest first in each photograph."""
    patches: list[U8] = []
    for index in track(range(len(photographs)), "looking for faces", len(photographs)):
        if len(patches) >= _WANTED:
            break
        try:
            image = photographs.read(index)
        except FacesError:
            continue
        faces = sorted(detect(image), key=lambda face: -float(face.box[2] * face.box[3]))
        if faces:
            patch = _around(image, faces[0])
            images.add(index, patch)
            patches.append(patch)
    if not patches:
        raise FacesError(
            f"the detector finds no face in {photographs.root}",
            "give photographs, upright, with faces of some 30 pixels or more",
        )
    return patches


def _around(image: U8, face: DetectedFace) -> U8:
    left, top, width, height = (float(value) for value in face.box)
    x = np.clip([left - _AROUND * width, left + (1 + _AROUND) * width], 0, image.shape[1])
    y = np.clip([top - _AROUND * height, top + (1 + _AROUND) * height], 0, image.shape[0])
    (x0, x1), (y0, y1) = x.round().astype(int), y.round().astype(int)
    return image[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]


def _compose(patches: Sequence[U8], count: int, size: tuple[int, int]) -> U8:
    """A frame with `count` faces side by side, as large as they fit."""
    height, width = size
    columns = max(1, min(count, round((count * width / height) ** 0.5)))
    rows = -(-count // columns)
    cell_height, cell_width = height // rows, width // columns
    frame = np.full((height, width, 3), _BACKGROUND, np.uint8)
    for number in range(count):
        patch = patches[number % len(patches)]
        scale = min(0.9 * cell_height / patch.shape[0], 0.9 * cell_width / patch.shape[1])
        new = (max(1, int(patch.shape[1] * scale)), max(1, int(patch.shape[0] * scale)))
        small = np.asarray(Image.fromarray(patch).resize(new, Image.Resampling.BILINEAR))
        row, column = divmod(number, columns)
        top = row * cell_height + (cell_height - new[1]) // 2
        left = column * cell_width + (cell_width - new[0]) // 2
        frame[top : top + new[1], left : left + new[0]] = small
    return frame


def _encoded(frame: U8) -> bytes:
    out = io.BytesIO()
    Image.fromarray(frame).save(out, "JPEG", quality=_QUALITY)
    return out.getvalue()


def _gallery(bundle: Bundle, session: Session, size: int) -> Gallery:
    gallery = Gallery(gallery_model(bundle, session.precision))
    random = np.random.default_rng(0)
    embeddings = random.standard_normal((size, session.dim)).astype(np.float32)
    gallery.enrol_many([f"{number}" for number in range(size)], embeddings)
    return gallery


def _write(bundle: Bundle, result: FrameBenchmark) -> None:
    options = {"engine": result.engine, "backend": result.backend, "photographs": True}
    of = tuple(result.provenance.files) if result.provenance else ()
    with transaction(bundle, "benchmark", options) as change:
        check_unchanged(bundle, result.artifact)
        check_unchanged(bundle, result.detector)
        change.path(result.report, "benchmark", of=of).write_bytes(encode_json(result))
        change.summary.update(verdict=result.verdict)
