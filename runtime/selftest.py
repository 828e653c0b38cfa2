"""A tiny network through every backend of this machine, compared with plain numpy.

It has no file of yours in it: what fails here is the machine's.
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

TEST_SHAPE = (3, 8, 8)

_SPEC = InputSpec(height=TEST_SHAPE[1], width=TEST_SHAPE[2])

_WIDTH, _DIM = 8, 4

TOLERANCE = 1e-3


@dataclass(frozen=True)
class SelfTestResult:
    """`outcome` is ran, compiled, failed or skipped; `detail` says how far off, or why."""

    backend: str
    outcome: str
    detail: str


def self_test() -> list[SelfTestResult]:
    """Try every backend; raises nothing."""
    random = np.random.default_rng(0)
    weights = {
        "w": random.normal(size=(_WIDTH, TEST_SHAPE[0])).astype(np.float32),
        "slope": random.uniform(0.1, 0.5, _WIDTH).astype(np.float32),
        "head": random.normal(size=(_DIM, _WIDTH * TEST_SHAPE[1] * TEST_SHAPE[2])).astype(
            np.float32
        ),
    }
    faces = random.normal(size=(3, *TEST_SHAPE)).astype(np.float32)
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
            found = CpuSession(file, "fp32", _SPEC).embed_tensor(faces)
        else:
            library = load_library(backend)
            options = EngineOptions(batch=(1, 2, 2))
            made = compile_plan(library, file.read_bytes(), TEST_SHAPE, "fp32", options)
            if backend in COMPILE_ONLY and (lack := lacking(backend)):
                return SelfTestResult(backend, "compiled", f"not run: {lack}")
            plan = file.with_suffix(".plan")
            plan.write_bytes(made.plan)
            with GpuSession(plan, "fp32", backend, _SPEC) as session:
                found = session.embed_tensor(faces)
    except FrEdgeError as error:
        return SelfTestResult(backend, "failed", error.message)
    worst = float(np.abs(found - expected).max() / np.abs(expected).max())
    outcome = "ran" if worst <= TOLERANCE else "failed"
    return SelfTestResult(
        backend, outcome, f"{worst:.1e} off plain numpy, at most {TOLERANCE:g} is allowed"
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
        [helper.make_tensor_value_info("face", TensorProto.FLOAT, ("batch", *TEST_SHAPE))],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ("batch", _DIM))],
        [numpy_helper.from_array(np.ascontiguousarray(v), n) for n, v in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
