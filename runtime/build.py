"""Build an engine and give it a fingerprint: where it was built, from what, in which precisions."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto

from ..bundle import Bundle, change, open_bundle
from ..calibration.calibrate import calibrate
from ..errors import BundleError, MachineError, UsageError
from ..faces.sources import Faces
from ..progress import Track, silent
from . import cpu
from .backends import pick_backend
from .device import describe_device

PRECISIONS = ("fp32", "fp16", "int8")
SOURCES = {"fp32": "model.onnx", "fp16": "model.fp16.onnx", "int8": "model.int8.onnx"}
_COMPUTE = ("Conv", "Gemm", "MatMul")
_INTEGER = ("QLinearConv", "QLinearMatMul", "QGemm", "ConvInteger", "MatMulInteger")


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
            f"{self.integer_kernels} of {self.layers['int8']} INT8 layers run on integer kernels "
            "here, the others in float between Q and DQ: this shows INT8's accuracy, not its speed"
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
            **machine_fingerprint(),
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


def machine_fingerprint() -> dict[str, Any]:
    """What must be equal for an engine to be used here."""
    device = describe_device()
    return {
        "backend": cpu.NAME,
        "onnxruntime": device.packages.get("onnxruntime", ""),
        "cpu": device.cpu,
        "arch": device.arch,
    }


def check_fingerprint(bundle: Bundle, name: str) -> dict[str, Any]:
    """The engine's fingerprint; raises MachineError when it was built on something else."""
    path = bundle.file(f"{name}.json")
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        precision = found["precision"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} cannot be read: {error}", "build the engine again") from error
    for key, here in machine_fingerprint().items():
        if found.get(key) != here:
            raise MachineError(
                f"{name} was built for {key} {found.get(key)!r}, this machine has {here!r}",
                f"run `fr-edge build-engine BUNDLE --{precision}` here",
            )
    if found.get("source_sha256") != bundle.files[SOURCES[precision]].sha256:
        raise BundleError(
            f"{name} was built from another {SOURCES[precision]}",
            f"run `fr-edge build-engine BUNDLE --{precision}` again",
        )
    return found


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
