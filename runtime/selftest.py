"""A small network through every backend of this machine, the way a user's network goes.

It is written into a bundle, built in FP32 and INT8, checked before loading, opened, and embeds faces
in runs that are replayed where there are CUDA graphs; the result is compared with plain numpy. It
needs no file of the user, so a failure here is a problem of the machine.
"""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ..arrays import F32, U8
from ..bundle.bundle import open_bundle, transaction
from ..errors import FrEdgeError
from ..faces.contract import InputSpec, preprocess
from .build import build_engine
from .fingerprint import SOURCES
from .machine.backends import BACKENDS, COMPILE_ONLY, lacking
from .session import open_session
from .trt.config import EngineOptions

_WIDTH, _DIM = 32, 4

_SPEC = InputSpec(height=16, width=16)

_TOLERANCE = {"fp32": 1e-3, "int8": 0.05}  # of the largest number

_RUNS = 3  # of each batch, with other faces each: the second and third may be replayed

_OPTIONS = EngineOptions(batch=(1, 2, 2))


@dataclass(frozen=True)
class SelfTestResult:
    """The self-test of one backend.

    Attributes:
        backend: Its name.
        outcome: "ran", "compiled", "failed" or "skipped".
        detail: The deviations, or the reason.
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
        "w1": random.normal(size=(_WIDTH, 3)).astype(np.float32),
        "slope": random.uniform(0.1, 0.5, _WIDTH).astype(np.float32),
        "w2": random.normal(size=(_WIDTH, _WIDTH)).astype(np.float32),
        "head": random.normal(size=(_DIM, _WIDTH * _SPEC.height * _SPEC.width)).astype(np.float32),
    }
    faces = random.integers(0, 256, (2 * _RUNS, 112, 112, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        return [_try(backend, Path(folder, backend), weights, faces) for backend in BACKENDS]


def _try(backend: str, folder: Path, weights: dict[str, F32], faces: U8) -> SelfTestResult:
    if lack := lacking(backend, build=True):
        return SelfTestResult(backend, "skipped", lack)
    steps, expected = _by_hand(weights, preprocess(faces, _SPEC))
    with transaction(folder, "export", {}) as change:
        change.spec, change.embedding_dim = _SPEC, _DIM
        for precision in _TOLERANCE:
            model = _network(weights, steps if precision == "int8" else {})
            change.path(SOURCES[precision], "model").write_bytes(model.SerializeToString())
    details, outcome = [], "ran"
    for precision, tolerance in _TOLERANCE.items():
        try:
            with _quiet():
                options = None if backend == "onnxruntime" else _OPTIONS
                built = build_engine(folder, precision, backend, options=options)
            if backend in COMPILE_ONLY and (lack := lacking(backend)):
                details.append(f"{precision}: {built.describe_layers()}, not run: {lack}")
                outcome = "compiled"
                continue
            worst = _deviation(folder, precision, backend, faces, expected)
        except FrEdgeError as error:
            return SelfTestResult(backend, "failed", f"{precision}: {error.message}")
        details.append(f"{precision} deviates by {worst:.1e} from plain numpy")
        if not worst <= tolerance:
            detail = f"{details[-1]}, allowed: {tolerance:g} of the largest number"
            return SelfTestResult(backend, "failed", detail)
    return SelfTestResult(backend, outcome, "; ".join(details))


def _deviation(folder: Path, precision: str, backend: str, faces: U8, expected: F32) -> float:
    """The largest deviation of embeddings of pairs of faces, over the largest number."""
    with open_session(open_bundle(folder), precision, backend) as session:
        parts = [session.embed(faces[2 * run : 2 * run + 2]) for run in range(_RUNS)]
    return float(np.abs(np.concatenate(parts) - expected).max() / np.abs(expected).max())


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out the notes about this network's layers; its results are the self-test's detail."""
    logger = logging.getLogger(__package__)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _by_hand(weights: dict[str, F32], x: F32) -> tuple[dict[str, F32], F32]:
    """The INT8 steps of activations and weights, and the embeddings."""
    steps = {"face": np.abs(x).max() / 127}
    x = np.einsum("oc,nchw->nohw", weights["w1"], x)
    x = np.where(x > 0, x, x * weights["slope"][:, None, None])
    steps["z"] = np.abs(x).max() / 127
    x = np.einsum("oc,nchw->nohw", weights["w2"], x)
    steps |= {name: np.abs(weights[name]).max(axis=1) / 127 for name in ("w1", "w2")}
    out: F32 = (x.reshape(len(x), -1) @ weights["head"].T).astype(np.float32)
    return {name: np.asarray(step, np.float32) for name, step in steps.items()}, out


def _network(weights: dict[str, F32], steps: dict[str, F32]) -> ModelProto:
    """The same as a network; with `steps` Q and DQ stand before both convolutions."""
    tensors = {
        "w1": weights["w1"][:, :, None, None],
        "slope": weights["slope"][:, None, None],
        "w2": weights["w2"][:, :, None, None],
        "head": weights["head"],
    }
    nodes: list[NodeProto] = []

    def rounded(name: str) -> str:
        if name not in steps:
            return name
        step = [f"{name}_step", f"{name}_zero"]
        tensors[step[0]] = steps[name]
        tensors[step[1]] = np.zeros(steps[name].shape, np.int8)
        axis: dict[str, Any] = {"axis": 0} if steps[name].ndim else {}
        for op, source, target in (
            ("QuantizeLinear", name, f"{name}_q"),
            ("DequantizeLinear", f"{name}_q", f"{name}_dq"),
        ):
            nodes.append(helper.make_node(op, [source, *step], [target], target, **axis))
        return f"{name}_dq"

    def conv(x: str, weight: str, name: str) -> None:
        inputs = [rounded(x), rounded(weight)]
        nodes.append(helper.make_node("Conv", inputs, [name], name, kernel_shape=[1, 1]))

    conv("face", "w1", "y")
    nodes.append(helper.make_node("PRelu", ["y", "slope"], ["z"], "prelu"))
    conv("z", "w2", "u")
    nodes.append(helper.make_node("Flatten", ["u"], ["flat"], "flatten"))
    nodes.append(helper.make_node("Gemm", ["flat", "head"], ["embedding"], "head", transB=1))
    graph = helper.make_graph(
        nodes,
        "selftest",
        [helper.make_tensor_value_info("face", TensorProto.FLOAT, ("batch", *_SPEC.shape))],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ("batch", _DIM))],
        [numpy_helper.from_array(np.asarray(v, order="C"), n) for n, v in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
