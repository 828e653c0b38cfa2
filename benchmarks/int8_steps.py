"""Where INT8's loss sits, what each step of calibration brings, and what two constants should be.

    python benchmarks/int8_steps.py FACES PAIRS BUNDLE... --table where|steps|constants|others
        [--limit 256] [--judged 96]

Faces of the people in PAIRS are left out: they judge the tables of int8_loss.py. Of the others,
most calibrate (`--limit` faces) and every fifth person judges. A row is 1e4 * (1 - cosine) with
the float network on the judging faces: mean, 99th percentile, 99.9th, worst. Statistics are
collected once per network; each row fits, rounds, quantizes and runs anew on onnxruntime's CPU.

    where      the layers and the roundings that lose: ranges by squared error, no other step
    steps      ranges by each method alone, then the steps one after another, then all but one
    constants  CLIPPING_WEIGHT and WEIGHT_ERROR_FACTOR, all steps (`--judged 1061` shows the worst)
    others     the other constants of calibration/constants.py that decide scales and ranges

One line of JSON per row, as soon as it is measured.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from fr_edge.arrays import F32
from fr_edge.bundle.bundle import open_bundle
from fr_edge.calibration import constants as values
from fr_edge.calibration.collect import collect_histograms
from fr_edge.calibration.covariance import CovarianceCollector, InputCovariance
from fr_edge.calibration.fitting import ALL_STEPS, RANGES_ONLY, CalibrationSteps, fit_table
from fr_edge.calibration.gptq import round_weights
from fr_edge.calibration.histogram import Histogram
from fr_edge.calibration.qdq import quantize_onnx
from fr_edge.calibration.subset import is_blank, select_subset
from fr_edge.calibration.table import CalibrationTable
from fr_edge.calibration.trt_cache import plain_ranges
from fr_edge.faces.contract import preprocess
from fr_edge.faces.pairs import read_pairs
from fr_edge.faces.sources import Faces, open_faces
from fr_edge.graph.layers import Int8Choice, choose_int8_layers, weighted_layers
from fr_edge.graph.prelu import blended
from fr_edge.inference import make_session
from fr_edge.metrics.verification import cosines

BIASES = replace(RANGES_ONLY, bias_correction=True)
EQUALIZED = replace(BIASES, equalization=True)
STEPS: dict[str, tuple[str, CalibrationSteps]] = {
    "min-max, nothing else": ("minmax", RANGES_ONLY),
    "percentile 99.99, nothing else": ("percentile", RANGES_ONLY),
    "entropy (KL), nothing else": ("entropy", RANGES_ONLY),
    "ranges by output error, bias correction": ("auto", BIASES),
    "+ equalization": ("auto", EQUALIZED),
    "+ activation shift": ("auto", replace(EQUALIZED, activation_shift=True)),
    "+ GPTQ: all of it": ("auto", ALL_STEPS),
    "all but activation shift": ("auto", replace(ALL_STEPS, activation_shift=False)),
    "all but equalization": ("auto", replace(ALL_STEPS, equalization=False)),
    "all but bias correction": ("auto", replace(ALL_STEPS, bias_correction=False)),
}
CONSTANTS = ((1, 1), (4, 4), (8, 4), (16, 4), (32, 4), (8, 1), (8, 2), (8, 8), (16, 2), (16, 8))
OTHERS: dict[str, tuple[object, ...]] = {
    "HEADROOM": (1.0, 1.1, 1.4),
    "EXPONENTS": ((0.0,), (0.5,), (1.0,)),
    "MIN_RELATIVE_PEAK": (1e-4, 1e-2),
    "WORTH_A_PRODUCT": (0.0, 0.5, 1.0),
    "AUTO_SHARES": (np.geomspace(0.15, 1.0, 20), np.geomspace(0.15, 1.0, 80)),
}


@dataclass(frozen=True)
class Subject:
    """A float network with its statistics, and the faces that judge."""

    model: onnx.ModelProto
    choice: Int8Choice
    histograms: Mapping[str, Histogram]
    moments: Mapping[str, InputCovariance]
    inputs: F32
    expected: F32

    def quantized(self, method: str, steps: CalibrationSteps) -> onnx.ModelProto:
        table = fit_table(
            self.model, self.choice, self.histograms, method, steps,
            faces=0, identities=0, model_sha256="",
        )  # fmt: skip
        rounded = {}
        if steps.gptq:
            biases = steps.bias_correction
            rounded = round_weights(self.model, table, self.moments, correct_biases=biases)
        return quantize_onnx(self.model, table, self.choice, rounded)

    def errors(self, model: onnx.ModelProto) -> list[float]:
        error = 1e4 * (1 - cosines(self.expected, embed(model, self.inputs)))
        return [round(float(v), 2) for v in (error.mean(), *np.percentile(error, [99, 99.9, 100]))]


def embed(model: onnx.ModelProto, inputs: F32) -> F32:
    session = make_session(blended(model).SerializeToString(), threads=1)
    batches = (inputs[i : i + 4] for i in range(0, len(inputs), 4))
    return np.concatenate([session.run(None, {"face": batch})[0] for batch in batches])


def every_layer(model: onnx.ModelProto) -> Int8Choice:
    """All layers with weights in INT8, the depthwise ones too."""
    table = weighted_layers(model)
    tensors = tuple(dict.fromkeys(layer.data for layer in table))
    return Int8Choice(tuple(layer.name for layer in table), {}, tensors, 1.0, 1.0)


def prepare(bundle: Path, faces: Faces, limit: int, judged: int, all_layers: bool) -> Subject:
    opened = open_bundle(bundle, check="manifest")
    model = onnx.load(opened.file("model.onnx"))
    choice = choose_int8_layers(model)
    tensors = every_layer(model).tensors if all_layers else choice.tensors
    subset = select_subset(faces, limit, judged)
    covariances = CovarianceCollector(model, choice.int8)
    images = (face for i in subset.calibration if not is_blank(face := faces.read(i)))
    histograms = collect_histograms(model, tensors, opened.spec, images, covariances)
    pixels = np.stack([faces.read(i) for i in subset.held_out])
    inputs = preprocess(pixels, opened.spec)
    return Subject(model, choice, histograms, covariances.moments, inputs, embed(model, inputs))


def without_rounding(model: onnx.ModelProto, weights: bool) -> onnx.ModelProto:
    """A Q/DQ model whose weights, or else whose activations, are not rounded."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    constants = {tensor.name for tensor in result.graph.initializer}
    source = {
        node.output[0]: node.input[0]
        for node in result.graph.node
        if node.op_type == "QuantizeLinear" and (node.input[0] in constants) == weights
    }
    replaced = {
        node.output[0]: source[node.input[0]]
        for node in result.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in source
    }
    for node in result.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = replaced.get(name, name)
    return result


def where(subject: Subject) -> Iterator[tuple[str, onnx.ModelProto]]:
    everything = every_layer(subject.model)
    ranges = plain_ranges(subject.histograms, "mse")
    table = CalibrationTable("mse", 0, 0, "", ranges)
    for name, choice in (("dense and depthwise", everything), ("dense only", subject.choice)):
        yield name, (quantized := quantize_onnx(subject.model, table, choice))
    yield "dense only, rounded weights alone", without_rounding(quantized, weights=False)
    yield "dense only, rounded activations alone", without_rounding(quantized, weights=True)


def steps(subject: Subject) -> Iterator[tuple[str, onnx.ModelProto]]:
    for name, (method, used) in STEPS.items():
        yield name, subject.quantized(method, used)


def constants(subject: Subject) -> Iterator[tuple[str, onnx.ModelProto]]:
    for clip, weight in CONSTANTS:
        vars(values)["CLIPPING_WEIGHT"] = float(clip)
        vars(values)["WEIGHT_ERROR_FACTOR"] = float(weight)
        yield f"{clip}, {weight}", subject.quantized("auto", ALL_STEPS)


def others(subject: Subject) -> Iterator[tuple[str, onnx.ModelProto]]:
    yield "as they are", subject.quantized("auto", ALL_STEPS)
    for name, tried in OTHERS.items():
        kept = getattr(values, name)
        for value in tried:
            vars(values)[name] = value
            text = f"{len(value)} values" if isinstance(value, np.ndarray) else str(value)
            yield f"{name} {text}", subject.quantized("auto", ALL_STEPS)
        vars(values)[name] = kept


TABLES = {"where": where, "steps": steps, "constants": constants, "others": others}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("faces")
    parser.add_argument("pairs")
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--table", choices=TABLES, required=True)
    parser.add_argument("--limit", type=int, default=256)
    parser.add_argument("--judged", type=int, default=96)
    asked = parser.parse_args()
    source = open_faces(asked.faces)
    judging = {key.rsplit("/", 1)[0] for key in read_pairs(asked.pairs, asked.faces).faces.keys}
    rest = [i for i, key in enumerate(source.keys) if key.rsplit("/", 1)[0] not in judging]
    for bundle in asked.bundles:
        subject = prepare(
            bundle, source.subset(rest), asked.limit, asked.judged, asked.table == "where"
        )
        for name, model in TABLES[asked.table](subject):
            row = {"bundle": bundle.name, "row": name, "judged": len(subject.inputs)}
            print(json.dumps(row | {"mean_p99_p999_worst": subject.errors(model)}), flush=True)


if __name__ == "__main__":
    main()
