"""A face detector becomes `detector.onnx` in the bundle of a face network, with how it is read.

Its input becomes `image (1, 3, height, width) float32`, its batch norms are folded, and it takes
canvases of any size where the network can; its outputs stay as they are, since they decide the family.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, TensorProto, helper

from ..arrays import U8
from ..bundle.bundle import open_bundle, transaction
from ..bundle.manifest import Bundle
from ..documents import encode_json, to_builtins
from ..errors import BundleError, ModelError
from ..faces.detect import Detector, open_detector
from ..faces.detectors.base import Outputs
from ..faces.detectors.onnx_detector import detector_input, run_detector, with_free_shapes
from ..faces.sources import portable_name
from ..faces.stored_detector import (
    DETECTOR,
    DETECTOR_SPEC,
    IMAGE,
    DetectorSpec,
    detector_of_spec,
    spec_of_detector,
)
from ..faces.synthetic.render import draw_face
from ..files import sha256
from ..graph.edit import name_nodes
from ..graph.layers import weighted_nodes
from ..graph.run import peaks
from ..inference import make_session
from ..onnx_file import read_onnx
from .batchnorm import fold_batchnorm
from .canonicalize import fold_constants
from .fp16 import convert_to_fp16, overflowing_nodes
from .graph_ir import ir_passes, to_ir, to_proto
from .one_face import to_float32
from .opset import at_opset

logger = logging.getLogger(__name__)

MAX_DIFFERENCE = 1e-3  # of an output, relative to its largest number

_PROBE = 192  # pixels a side, of drawn photographs that the export is checked on


@dataclass(frozen=True)
class DetectorExport:
    """What export did to a detector.

    Attributes:
        bundle: The bundle's folder.
        file: Of the network within it.
        detector: How it is fed and read.
        source_sha256: Of the file that was exported.
        parameters: Numbers in the weights of its layers.
        max_difference: Of an output from the original's, relative to its largest number.
        fp16: Whether the bundle has an FP16 model of it.
    """

    bundle: str
    file: str
    detector: DetectorSpec
    source_sha256: str
    parameters: int
    max_difference: float
    fp16: bool


def export_detector(
    source: str | Path,
    out: str | Path,
    *,
    min_score: float | None = None,
    mean: str | None = None,
    std: str | None = None,
    channels: str | None = None,
) -> DetectorExport:
    """Export a detector into a bundle that holds a face network.

    Args:
        source: An ONNX file of a family that `open_detector` knows.
        out: The bundle.
        min_score: As `open_detector` takes it; kept in the bundle.
        mean: As `open_detector` takes it.
        std: As `open_detector` takes it.
        channels: As `open_detector` takes it.

    Raises:
        BundleError: There is no bundle with a face network.
        ModelError: The detector has no known layout, or cannot be written in this form.
        UsageError: A text cannot be read.
        MachineError: onnx-ir is missing.
    """
    source, bundle = Path(source), _face_bundle(out)
    original = open_detector(source, min_score, mean=mean, std=std, channels=channels)
    model = _standard(read_onnx(source, side_files=True), original)
    spec = spec_of_detector(original, tuple(value.name for value in model.graph.output))
    data = model.SerializeToString()
    detector = detector_of_spec(spec, make_session(data, name=f"the detector {source}"), source)
    canvases = [original.fit(image)[0] for image in _probes()]
    difference = max(_difference(original, detector, canvas) for canvas in canvases)
    if difference > MAX_DIFFERENCE:
        raise ModelError(
            f"the exported detector differs from {source} by {difference:.2g} of an output's largest"
            f" number, expected at most {MAX_DIFFERENCE:g}",
            "simplify the file with onnxsim, or export the detector again at opset 17",
        )
    half = _half(model, detector, canvases)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    layers = weighted_nodes(model)
    result = DetectorExport(
        str(out),
        DETECTOR,
        spec,
        sha256(source),
        sum(int(np.prod(weights[node.input[1]].dims)) for node in layers),
        difference,
        half is not None,
    )
    options = {"source": portable_name(str(source)), "role": "detector"}
    with transaction(bundle, "export", options) as change:
        change.path(DETECTOR, "detector").write_bytes(data)
        change.path(DETECTOR_SPEC, "how the detector is read").write_bytes(encode_json(spec))
        if half is None:
            change.remove("detector.fp16.onnx")
        else:
            change.path("detector.fp16.onnx", "FP16 detector").write_bytes(half.SerializeToString())
        change.summary.update(
            {k: v for k, v in to_builtins(result).items() if k not in ("bundle", "file")}
        )
    return result


def _face_bundle(out: str | Path) -> Bundle:
    bundle = open_bundle(out) if Path(out).exists() else None
    if bundle is None or "model.onnx" not in bundle:
        raise BundleError(
            f"{out} is not a bundle with a face network",
            f"`fr-edge export NETWORK --out {out}` first: one bundle holds both",
        )
    return bundle


def _standard(given: ModelProto, detector: Detector) -> ModelProto:
    """The network in fr-edge's form."""
    network = detector.network
    tidied = to_ir(at_opset(to_float32(given)))
    try:
        tidied.graph.sort()
    except ValueError as error:
        raise ModelError(
            f"the detector is not valid ONNX, its graph has a cycle: {error}"
        ) from error
    ir_passes.RemoveInitializersFromInputsPass()(tidied)
    fold_constants(tidied)
    model = to_proto(tidied)
    if network.free or network.batch > 1:
        model = ModelProto.FromString(with_free_shapes(model))
    folded, counts = fold_batchnorm(model)
    if counts:
        logger.info("folded: %s", ", ".join(f"{n} {kind}" for kind, n in counts.items()))
    graph = folded.graph
    name = graph.input[0].name
    first = IMAGE
    if network.channels_last:
        first = f"{IMAGE}_channels_last"
        graph.node.insert(
            0, helper.make_node("Transpose", [IMAGE], [first], first, perm=(0, 2, 3, 1))
        )
    for node in graph.node:
        for index, read in enumerate(node.input):
            if read == name:
                node.input[index] = first
    size = ("height", "width") if network.free else network.size
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info(IMAGE, TensorProto.FLOAT, (1, 3, *size)))
    floats = [v for v in graph.output if v.type.tensor_type.elem_type == TensorProto.FLOAT]
    del graph.output[:]  # no known layout needs counts and labels
    graph.output.extend(floats)
    _drop_empty_inputs(graph)
    name_nodes(graph)
    return folded


def _drop_empty_inputs(graph: GraphProto) -> None:
    """Leave out `roi` and `scales` of a Resize that hold no numbers: strict readers count them."""
    empty = {tensor.name for tensor in graph.initializer if 0 in tensor.dims}
    for node in graph.node:
        if node.op_type == "Resize":
            for index, name in enumerate(node.input):
                if name in empty:
                    node.input[index] = ""


def _probes() -> list[U8]:
    """Two drawn faces, large and small, in a photograph."""
    probes = []
    for person, side in ((0, 112), (1, 56)):
        image = np.full((_PROBE, _PROBE, 3), 90, np.uint8)
        step = 112 // side
        image[32 : 32 + side, 48 : 48 + side] = draw_face(person, 0, 0)[::step, ::step]
        probes.append(image)
    return probes


def _difference(original: Detector, detector: Detector, canvas: U8) -> float:
    """The largest difference of an output, relative to its largest number."""
    before = run_detector(original.network, canvas, original.spec)
    after = run_detector(detector.network, canvas, detector.spec)
    return _relative(before, after)


def _relative(before: Outputs, after: Outputs) -> float:
    worst = 0.0
    for name, array in after.items():
        expected = before[name]
        if expected.shape != array.shape:
            return float("inf")
        largest = float(np.abs(expected).max(initial=0)) or 1.0
        worst = max(worst, float(np.abs(expected - array).max(initial=0)) / largest)
    return worst if np.isfinite(worst) else float("inf")


def _half(model: ModelProto, detector: Detector, canvases: list[U8]) -> ModelProto | None:
    """The FP16 model; None where it cannot be made or gives no numbers."""
    inputs = [detector_input(detector.network, canvas, detector.spec) for canvas in canvases]
    try:
        typed = onnx.shape_inference.infer_shapes(model, data_prop=True)
        tops = peaks(typed, np.concatenate(inputs))
        floats = overflowing_nodes(typed, tops)
        half = convert_to_fp16(typed, floats)
        make_session(half.SerializeToString(), name="the FP16 detector")
    except ModelError as error:
        logger.warning("there is no FP16 model of the detector: %s", error.message)
        return None
    return half
