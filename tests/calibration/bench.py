"""What INT8 loses on faces of other people, with any steps of calibration left out.

Statistics are collected once per network; each loss fits, rounds, quantizes and runs anew.
"""

import lzma
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from fitted import run

from fr_edge.calibration.collect import collect_histograms
from fr_edge.calibration.covariance import CovarianceCollector
from fr_edge.calibration.fitting import ALL_STEPS, CalibrationSteps, fit_table
from fr_edge.calibration.gptq import round_weights
from fr_edge.calibration.qdq import quantize_onnx
from fr_edge.faces.contract import PRESETS, preprocess
from fr_edge.faces.sources import Faces, open_faces
from fr_edge.graph.edit import name_nodes
from fr_edge.graph.int8_fp16 import int8_fp16_model
from fr_edge.graph.layers import choose_int8_layers
from fr_edge.runtime.trt.builder import compile_plan
from fr_edge.runtime.trt.config import EngineOptions
from fr_edge.runtime.trt.layers import EngineLayer, node_precisions

SPEC = PRESETS["insightface"]
STEPS = ("equalization", "activation_shift", "bias_correction", "gptq")


class BenchFaces:
    """Faces that calibrate, and faces of other people that judge."""

    def __init__(self) -> None:
        self.calibrating: Faces = open_faces("synthetic:24x2@7").cached()
        judging = open_faces("synthetic:32x1@8")
        self.judged = preprocess(next(judging.batches(len(judging))), SPEC)


class Bench:
    """A network with its statistics."""

    def __init__(self, model: onnx.ModelProto, faces: BenchFaces, grouped: bool = False) -> None:
        name_nodes(model.graph)
        self.model, self.judged = model, faces.judged
        self.choice = choose_int8_layers(model, grouped=grouped)
        self.moments = CovarianceCollector(model, self.choice.int8)
        images = map(faces.calibrating.read, range(len(faces.calibrating)))
        self.histograms = collect_histograms(model, self.choice.tensors, SPEC, images, self.moments)
        self.expected = run(model, self.judged)[0]

    def quantized(
        self, method: str = "auto", steps: CalibrationSteps = ALL_STEPS
    ) -> onnx.ModelProto:
        """The Q/DQ model."""
        table = fit_table(
            self.model, self.choice, self.histograms, method, steps,
            faces=48, identities=24, model_sha256="",
        )  # fmt: skip
        moments = self.moments.moments if steps.gptq else {}
        rounded = round_weights(self.model, table, moments, correct_biases=steps.bias_correction)
        return quantize_onnx(self.model, table, self.choice, rounded)

    def loss(self, method: str = "auto", steps: CalibrationSteps = ALL_STEPS) -> float:
        """Error of the embeddings over their spread across faces."""
        result = run(self.quantized(method, steps), self.judged)[0]
        spread = self.expected - self.expected.mean(axis=0)
        return float(np.linalg.norm(result - self.expected) / np.linalg.norm(spread))


def trained(name: str) -> onnx.ModelProto:
    """A network of `make_trained.py`: residual, excite or tokens; or families, of `families.py`."""
    data = Path(__file__).with_name("trained") / f"{name}.onnx.xz"
    return onnx.load_from_string(lzma.decompress(data.read_bytes()))


def compiled(
    bench: Bench, rtx: Any, compute: str = "8.9"
) -> tuple[dict[str, str], list[EngineLayer]]:
    """Layer with weights -> what it computes in, with FP16 around INT8, and the engine's table."""
    quantized = int8_fp16_model(bench.quantized())
    options = EngineOptions(batch=(1, 1, 4), compute=(compute,))
    built = compile_plan(rtx, quantized.SerializeToString(), (3, 112, 112), "int8", options)
    return node_precisions(quantized, built.layers), built.layers
