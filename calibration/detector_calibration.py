"""INT8 of a bundle's detector: ranges from photographs, and what it loses on others."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from ..arrays import F32, F64
from ..bundle.bundle import open_bundle, transaction
from ..bundle.manifest import Bundle
from ..documents import encode_json, to_builtins
from ..errors import FacesError, ModelError, UsageError
from ..faces.contract import ARCFACE_TEMPLATE
from ..faces.detect import Detect, Detector
from ..faces.detectors.onnx_detector import detector_input
from ..faces.photographs import Photographs
from ..faces.stored_detector import (
    DETECTOR,
    DETECTOR_SPEC,
    DetectorSpec,
    detector_of_spec,
    read_detector_spec,
)
from ..graph.layers import Int8Choice, choose_int8_layers
from ..graph.load import check_finite
from ..graph.shapes import with_image_size
from ..inference import make_session
from ..metrics.detection import DetectionDrift, PhotographDetections, compare_detections
from ..onnx_file import read_onnx
from ..progress import Track, silent
from .collect import collect_images
from .covariance import CovarianceCollector
from .fitting import ALL_STEPS, fit_table
from .gptq import round_weights
from .qdq import quantize_onnx
from .table import table_to_json

logger = logging.getLogger(__name__)

DETECTOR_TABLE = "calibration.detector.json"
DETECTOR_INT8 = "detector.int8.onnx"
DETECTOR_REPORT = "reports/calibration-detector.json"

HOLD_OUT_EVERY = 4  # one folder, or photograph, in so many judges

_MIN_PHOTOGRAPHS = 4  # that calibrate
_ENOUGH = 32  # photographs that calibrate, below which the tails depend on chance: a warning
_MAX_LIMIT = 10_000


@dataclass(frozen=True)
class DetectorCalibration:
    """What INT8 does to a detector, with the shape of its report.

    Attributes:
        family: Of the detector.
        photographs: How many calibrated.
        held_out: How many judged.
        int8_layers: Layers in INT8.
        int8_mac_share: Share of all multiply-adds in INT8, 0 to 1.
        kept_float: Why layers are in float -> how many.
        judged: The Q/DQ model against the float model on photographs held out; None without any.
        warnings: What is suspicious, a sentence each.
    """

    family: str
    photographs: int
    held_out: int
    int8_layers: int
    int8_mac_share: float
    kept_float: Mapping[str, int]
    judged: DetectionDrift | None
    warnings: tuple[str, ...]


def calibrate_detector(
    bundle: Bundle | str | Path,
    photographs: Photographs,
    limit: int = 512,
    track: Track = silent,
) -> DetectorCalibration:
    """Write the INT8 model of a bundle's detector, its ranges and a report.

    One folder in four is held out and judges; where there are fewer than four folders, one
    photograph in four.

    Args:
        bundle: A bundle with a detector, or its folder.
        photographs: Whole photographs as the device sees them, not aligned faces.
        limit: Most photographs that calibrate, and most that judge.
        track: Shows progress.

    Raises:
        BundleError: The bundle has no detector.
        UsageError: An impossible limit.
        FacesError: Too few photographs can be read.
        ModelError: The detector has no dense layer, or overflows.
    """
    bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    if not 1 <= limit <= _MAX_LIMIT:
        raise UsageError(f"--limit is 1 to {_MAX_LIMIT}, found {limit}")
    spec = read_detector_spec(bundle.file(DETECTOR_SPEC))
    model = read_onnx(bundle.file(DETECTOR))
    check_finite(model)
    choice = choose_int8_layers(with_image_size(model, (spec.height, spec.width)))
    if not choice.int8:
        raise ModelError("the detector has no dense layer that 8 bits could speed up", "build FP16")
    reference = open_graph_detector(model, spec, bundle.root)
    calibrating, judging = _split(photographs, limit)
    unreadable: list[str] = []
    inputs = _inputs(reference, calibrating, track, unreadable)
    covariances = CovarianceCollector(model, list(choice.int8))
    histograms = collect_images(model, choice.tensors, inputs, covariances)
    used = len(calibrating) - len(unreadable)
    if used < _MIN_PHOTOGRAPHS:
        raise FacesError(
            f"{used} photographs of {photographs.root} calibrate, expected {_MIN_PHOTOGRAPHS} or more",
            "give more photographs as the device sees them",
        )
    table = fit_table(
        model, choice, histograms, "auto", ALL_STEPS,
        faces=used, identities=used, model_sha256=bundle.files[DETECTOR].sha256,
    )  # fmt: skip
    rounded = round_weights(model, table, covariances.moments)
    quantized = quantize_onnx(model, table, choice, rounded)
    judged = _judge(reference, quantized, spec, bundle.root, judging, track)
    report = _report(spec, choice, used, judging, judged, unreadable)
    for warning in report.warnings:
        logger.warning(warning)
    with transaction(bundle, "calibrate", {"role": "detector", "limit": limit}) as change:
        change.path(DETECTOR_TABLE, "calibration table of the detector").write_text(
            table_to_json(table)
        )
        change.path(DETECTOR_INT8, "INT8 detector (Q/DQ)").write_bytes(
            quantized.SerializeToString()
        )
        change.path(DETECTOR_REPORT, "calibration report of the detector").write_bytes(
            encode_json(report)
        )
        change.summary.update(to_builtins(report))
    return report


def open_graph_detector(model: onnx.ModelProto, spec: DetectorSpec, path: Path) -> Detector:
    """A detector that onnxruntime runs from its graph.

    Args:
        model: A float or Q/DQ model.
        spec: How it is fed and read.
        path: For messages.

    Raises:
        ModelError: onnxruntime refuses the model.
    """
    return detector_of_spec(spec, make_session(model.SerializeToString()), path)


def detections(
    detect: Detect, photographs: Photographs, track: Track = silent, label: str = "detecting"
) -> list[PhotographDetections]:
    """What a detector finds in each photograph; one that cannot be read counts as without faces.

    Args:
        detect: The detector.
        photographs: What to look at.
        track: Shows progress.
        label: What the progress is called.
    """
    results = []
    for index in track(range(len(photographs)), label, len(photographs)):
        try:
            faces = detect(photographs.read(index))
        except FacesError:
            faces = []
        results.append(
            PhotographDetections(
                np.array([face.box for face in faces], np.float32).reshape(-1, 4),
                np.array([face.points for face in faces], np.float32).reshape(-1, 5, 2),
            )
        )
    return results


def template_points() -> F64:
    """Landmarks of an aligned face in its pixels, `(5, 2)`."""
    return np.array(ARCFACE_TEMPLATE, np.float64)


def _split(photographs: Photographs, limit: int) -> tuple[Photographs, Photographs]:
    """Photographs that calibrate and photographs that judge, spread evenly up to the limit."""
    groups = photographs.labels
    if int(groups.max(initial=0)) + 1 < HOLD_OUT_EVERY:
        groups = np.arange(len(photographs))
    judges = groups % HOLD_OUT_EVERY == HOLD_OUT_EVERY - 1
    parts = (np.flatnonzero(~judges), np.flatnonzero(judges))
    spread = [p[np.linspace(0, len(p) - 1, min(len(p), limit)).astype(int)] for p in parts]
    return photographs.subset(spread[0]), photographs.subset(spread[1])


def _inputs(
    detector: Detector, photographs: Photographs, track: Track, unreadable: list[str]
) -> Iterator[F32]:
    """The network's input for each photograph that can be read."""
    for index in track(range(len(photographs)), "calibrating", len(photographs)):
        try:
            image = photographs.read(index)
        except FacesError as error:
            unreadable.append(error.message)
            continue
        yield detector_input(detector.network, detector.fit(image)[0], detector.spec)


def _judge(
    reference: Detector,
    quantized: onnx.ModelProto,
    spec: DetectorSpec,
    root: Path,
    judging: Photographs,
    track: Track,
) -> DetectionDrift | None:
    if not len(judging):
        return None
    int8 = open_graph_detector(quantized, spec, root)
    before = detections(reference, judging, track, "judging: FP32")
    return compare_detections(
        before, detections(int8, judging, track, "judging: INT8"), template_points()
    )


def _report(
    spec: DetectorSpec,
    choice: Int8Choice,
    used: int,
    judging: Photographs,
    judged: DetectionDrift | None,
    unreadable: Sequence[str],
) -> DetectorCalibration:
    warnings = []
    if unreadable:
        warnings.append(f"{len(unreadable)} photographs cannot be read, the first: {unreadable[0]}")
    if used < _ENOUGH:
        warnings.append(f"{used} photographs calibrate; {_ENOUGH} or more show the ranges better")
    if judged is None or not judged.faces:
        warnings.append("the INT8 detector was not judged: no photograph held out shows a face")
    return DetectorCalibration(
        spec.family,
        used,
        len(judging),
        len(choice.int8),
        choice.mac_share,
        dict(Counter(choice.float_layers.values())),
        judged,
        tuple(warnings),
    )
