"""A tiny network through every backend of this machine, compared with plain numpy.

It needs no file of the user, so a failure here is a problem of the machine.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from ..arrays import F32
from ..errors import FrEdgeError
from ..faces.contract import InputSpec
from .machine.backends import BACKENDS, COMPILE_ONLY, lacking
from .onnxruntime_session import CpuSession
from .tensorrt_session import GpuSession
from .trt.builder import compile_plan, load_library
from .trt.config import EngineOptions

_SHAPE = (3, 8, 8)

_SPEC = InputSpec(height=_SHAPE[1], width=_SHAPE[2])

_WIDTH, _DIM = 8, 4

_TOLERANCE = 1e-3  # of the largest number


@dataclass(frozen=True)
class SelfTestResult:
    """The self-test of one backend.

    Attributes:
        backend: Its name.
        outcome: "ran", "compiled", "failed" or "skipped".
        detail: The deviation, or the reason.
    """

    backend: str
    outcome: str
    detail: str


def self_test() -> list[SelfTestResult]:
    """Try every backend.

    Returns:
        One result per backend; nothing is raised.
    """
    random = np.random.default_rng(0)
    weights = {
        "w": random.normal(size=(_WIDTH, _SHAPE[0])).astype(np.float32),
        "slope": random.uniform(0.1, 0.5, _WIDTH).astype(np.float32),
        "head": random.normal(size=(_DIM, _WIDTH * _SHAPE[1] * _SHAPE[2])).astype(np.float32),
    }
    faces = random.normal(size=(3, *_SHAPE)).astype(np.float32)
    expected = _by_hand(weights, faces)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "tiny.onnx")
        file.write_bytes(_network(weights).SerializeToString())
        return [_try(backend, file, faces, expected) for backend in BACKENDS]


def _try(backend: str, file: Path, faces: F32, expected: F32) -> SelfTestResult:
    if lack := lacking(backend, build=True):
        return SelfTestResult(backend, "skipped", lack)
    try:
        if backend == "onnxruntime":
            result = CpuSession(file, "fp32", _SPEC).embed_tensor(faces)
        else:
            library = load_library(backend)
            options = EngineOptions(batch=(1, 2, 2))
            compiled = compile_plan(library, file.read_bytes(), _SHAPE, "fp32", options)
            if backend in COMPILE_ONLY and (lack := lacking(backend)):
                return SelfTestResult(backend, "compiled", f"not run: {lack}")
            plan = file.with_suffix(".plan")
            plan.write_bytes(compiled.plan)
            with GpuSession(plan, "fp32", backend, _SPEC) as session:
                result = session.embed_tensor(faces)
    except FrEdgeError as error:
        return SelfTestResult(backend, "failed", error.message)
    worst = float(np.abs(result - expected).max() / np.abs(expected).max())
    outcome = "ran" if worst <= _TOLERANCE else "failed"
    return SelfTestResult(
        backend, outcome, f"deviates by {worst:.1e} from plain numpy, allowed: {_TOLERANCE:g}"
    )


def _by_hand(weights: dict[str, F32], faces: F32) -> F32:
    x = np.einsum("oc,nchw->nohw", weights["w"], faces)
    x = np.where(x > 0, x, x * weights["slope"][:, None, None])
    out: F32 = (x.reshape(len(x), -1) @ weights["head"].T).astype(np.float32)
    return out


def _network(weights: dict[str, F32]) -> ModelProto:
    tensors = {
        "w": weights["w"][:, :, None, None],
        "slope": weights["slope"][:, None, None],
        "head": weights["head"],
    }
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["face", "w"], ["y"], "conv", kernel_shape=[1, 1]),
            helper.make_node("PRelu", ["y", "slope"], ["z"], "prelu"),
            helper.make_node("Flatten", ["z"], ["flat"], "flatten"),
            helper.make_node("Gemm", ["flat", "head"], ["embedding"], "head", transB=1),
        ],
        "tiny",
        [helper.make_tensor_value_info("face", TensorProto.FLOAT, ("batch", *_SHAPE))],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ("batch", _DIM))],
        [numpy_helper.from_array(np.ascontiguousarray(v), n) for n, v in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
