"""What each step of calibration brings to a detector in INT8: faces missed, and how far landmarks move.

    python benchmarks/detector_steps.py BUNDLE CALIBRATION JUDGING

BUNDLE holds a detector (`fr-edge export DETECTOR.onnx --role detector --out BUNDLE`); the others are folders
of photographs. Nothing is written. The Q/DQ graph runs on onnxruntime with every rounding.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from onnx import ModelProto

from fr_edge.arrays import F32
from fr_edge.calibration.collect import collect_images
from fr_edge.calibration.covariance import CovarianceCollector
from fr_edge.calibration.detector_calibration import (
    detections,
    open_graph_detector,
    template_points,
)
from fr_edge.calibration.fitting import ALL_STEPS, RANGES_ONLY, CalibrationSteps, fit_table
from fr_edge.calibration.gptq import round_weights
from fr_edge.calibration.qdq import quantize_onnx
from fr_edge.faces.detect import Detector
from fr_edge.faces.detectors.onnx_detector import detector_input
from fr_edge.faces.photographs import Photographs, open_photographs
from fr_edge.faces.stored_detector import DETECTOR, DETECTOR_SPEC, read_detector_spec
from fr_edge.graph.layers import choose_int8_layers
from fr_edge.metrics.detection import compare_detections
from fr_edge.onnx_file import read_onnx

STEPS = {
    "ranges alone": RANGES_ONLY,
    "equalization, bias correction": CalibrationSteps(activation_shift=False, gptq=False),
    "the same and GPTQ": CalibrationSteps(activation_shift=False),
    "all, with activation shift": ALL_STEPS,
}


def last_layers(model: ModelProto) -> dict[str, str]:
    """The convolutions in front of the outputs -> why they stay float."""
    makers = {name: node for node in model.graph.node for name in node.output}
    layers = {}
    for value in model.graph.output:
        node = makers[value.name]
        while node.op_type != "Conv":
            node = makers[node.input[0]]
        layers[node.name] = "in front of an output"
    return layers


def inputs_of(detector: Detector, photographs: Photographs) -> Iterator[F32]:
    for index in range(len(photographs)):
        canvas, _ = detector.fit(photographs.read(index))
        yield detector_input(detector.network, canvas, detector.spec)


def main() -> None:
    bundle, calibrating, judging = Path(sys.argv[1]), *map(open_photographs, sys.argv[2:4])
    spec, model = read_detector_spec(bundle / DETECTOR_SPEC), read_onnx(bundle / DETECTOR)
    reference = open_graph_detector(model, spec, bundle)
    expected = detections(reference, judging)
    print(f"{spec.family}: {len(calibrating)} photographs calibrate, {len(judging)} judge")
    for heads, floats in (("all layers", {}), ("last layers float", last_layers(model))):
        choice = choose_int8_layers(model, floats)
        covariances = CovarianceCollector(model, list(choice.int8))
        inputs = inputs_of(reference, calibrating)
        histograms = collect_images(model, choice.tensors, inputs, covariances)
        for name, steps in STEPS.items():
            count = len(calibrating)
            table = fit_table(
                model, choice, histograms, "auto", steps,
                faces=count, identities=count, model_sha256="",
            )  # fmt: skip
            moments = covariances.moments if steps.gptq else {}
            rounded = round_weights(model, table, moments, correct_biases=steps.bias_correction)
            quantized = quantize_onnx(model, table, choice, rounded)
            after = detections(open_graph_detector(quantized, spec, bundle), judging)
            drift = compare_detections(expected, after, template_points())
            shift = drift.shift
            moved = f"{shift.median:.3f} {shift.p95:.3f} {shift.max:.3f}" if shift else "-"
            print(
                f"{heads}, {name}: {drift.missed} of {drift.faces} missed, {drift.added} added,"
                f" shift median, p95, max {moved}",
                flush=True,
            )


if __name__ == "__main__":
    main()
