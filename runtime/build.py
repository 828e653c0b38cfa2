"""Build an engine and give it a fingerprint: where it was built, from what, in which precisions."""

import json
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto

from ..bundle import Bundle, change, open_bundle
from ..calibration.calibrate import calibrate
from ..errors import UsageError
from ..faces.sources import Faces
from ..progress import Track, silent
from . import cpu
from .backends import pick_backend
from .cpu_graph import INTEGER_PRODUCT
from .fingerprint import SOURCES, machine_fingerprint

PRECISIONS = ("fp32", "fp16", "int8")
_COMPUTE = ("Conv", "Gemm", "MatMul")
_INTEGER = (INTEGER_PRODUCT, "QLinearConv", "QLinearMatMul", "QGemm")


@dataclass(frozen=True)
class Built:
    """What `build_engine` made; `layers` counts layers with weights by the precision of what they
    multiply, `integer_kernels` those that this backend runs on integer arithmetic."""

    engine: str
    backend: str
    precision: str
    layers: dict[str, int]
    integer_kernels: int
    size: int

    @property
    def notes(self) -> list[str]:
        if self.precision == "fp16":
            return ["onnxruntime's CPU has few FP16 kernels: weights are FP16, most sums FP32"]
        if self.precision != "int8":
            return []
        return [
            f"{self.integer_kernels} of {self.layers['int8']} INT8 layers run on integer kernels"
            " here, the others in float between Q and DQ; TensorRT's arithmetic differs in the"
            " rounding"
        ]


def engine_name(backend: str, precision: str) -> str:
    """Where the engine lies in the bundle."""
    return f"engines/{backend}-{precision}.{'onnx' if backend == cpu.NAME else 'plan'}"


def build_engine(
    bundle: Bundle | str | Path,
    precision: str,
    backend: str = "auto",
    faces: Faces | None = None,
    track: Track = silent,
) -> Built:
    """Build `precision` (fp32, fp16, int8) for this machine, into the bundle.

    INT8 calibrates first when the bundle has no table and `faces` are given; without either it
    raises UsageError. Raises MachineError when the backend cannot be used here.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"no precision {precision!r}", f"precisions: {', '.join(PRECISIONS)}")
    chosen = pick_backend(backend)
    bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    if precision == "int8" and "model.int8.onnx" not in bundle:
        if faces is None:
            raise UsageError(
                f"{bundle.root} is not calibrated, and INT8 ranges come from faces only",
                "add --faces SRC, or run `fr-edge calibrate` first",
            )
        bundle = calibrate(bundle, faces, track=track)
    source = bundle.file(SOURCES[precision])
    name = engine_name(chosen, precision)
    layers = layer_precisions(onnx.load(source))
    with change(bundle.root, "build-engine", {"precision": precision, "backend": chosen}) as draft:
        draft.drop(f"reports/verify-{precision}", f"reports/evaluate-{precision}")
        draft.drop(f"reports/benchmark-{precision}", "report.html")
        target = draft.path(name, f"{precision} engine")
        executed = cpu.build(source, target)
        integer = sum(executed.get(op, 0) for op in _INTEGER)
        built = Built(name, chosen, precision, layers, integer, target.stat().st_size)
        fingerprint = {
            **machine_fingerprint(chosen),
            "precision": precision,
            "source_sha256": bundle.files[SOURCES[precision]].sha256,
            "layers": layers,
            "integer_kernels": integer,
            "operators": executed,
        }
        text = json.dumps(fingerprint, indent=1) + "\n"
        draft.path(f"{name}.json", "engine fingerprint").write_text(text)
        draft.summary.update(layers=layers, integer_kernels=integer)
    return built


def layer_precisions(model: onnx.ModelProto) -> dict[str, int]:
    """How many layers with weights multiply INT8, FP16 and FP32 numbers."""
    makers = {out: node.op_type for node in model.graph.node for out in node.output}
    half = {t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT16}
    counts = {"int8": 0, "fp16": 0, "fp32": 0}
    for node in model.graph.node:
        if node.op_type not in _COMPUTE:
            continue
        if all(makers.get(name) == "DequantizeLinear" for name in node.input[:2]):
            counts["int8"] += 1
        elif node.input[1] in half:
            counts["fp16"] += 1
        else:
            counts["fp32"] += 1
    return counts
