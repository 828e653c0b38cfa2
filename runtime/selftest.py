"""Networks made on the spot: what fails with them is a problem of the machine.

The self-test's goes through every backend, the way a user's network goes: it is written into a bundle,
built in FP32 and INT8, checked before loading, opened, and embeds faces in runs that are replayed where
there are CUDA graphs; the result is compared with plain numpy. The sample, which `accept` tries and
times, has what embedding networks are made of, with random weights. It does not tell people apart.
"""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, checker, helper, numpy_helper

from ..arrays import F32, U8
from ..bundle.bundle import open_bundle, transaction
from ..bundle.golden import golden_faces, write_golden
from ..bundle.manifest import Bundle
from ..bundle.trust import requiring_signatures
from ..calibration.calibrate import calibrate
from ..errors import FrEdgeError, MachineError
from ..faces.contract import ALIGNED_SIZE, InputSpec, preprocess
from ..faces.sources import open_faces
from ..progress import Track, silent
from .build import build_engine
from .fingerprint import SOURCES
from .machine.backends import BACKENDS, COMPILE_ONLY, lacking
from .onnxruntime_session import ONNXRUNTIME, CpuSession
from .session import open_session
from .trt.config import EngineOptions

_WIDTH, _DIM = 32, 4

_SPEC = InputSpec(height=16, width=16)

_TOLERANCE = {"fp32": 1e-3, "int8": 0.05}  # of the largest number

_RUNS = 3  # of each batch, with other faces each: the second and third may be replayed

_OPTIONS = EngineOptions(batch=(1, 2, 2))

_SAMPLE_SEED = 0
_SAMPLE_CENTERED = 0.8  # share of the mean embedding that is subtracted
_SAMPLE_DIM = 128
_SAMPLE_BLOCKS = ((64, 1, 3), (128, 2, 3), (128, 1, 2), (128, 2, 3))  # channels, stride, repeats
_SAMPLE_FACES = "synthetic:12x2@11"


@dataclass(frozen=True)
class SelfTestResult:
    """The self-test of one backend.

    Attributes:
        backend: Its name.
        outcome: "ran", "failed" or "skipped"; "compiled" where the engines were built and cannot run
            here, of a backend that compiles ahead of time, and beside one that runs on the GPU.
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
    results: list[SelfTestResult] = []
    with tempfile.TemporaryDirectory() as folder, requiring_signatures(required=False):
        for backend in BACKENDS:
            ran = any(r.outcome == "ran" for r in results if r.backend != ONNXRUNTIME)
            results.append(_try(backend, Path(folder, backend), weights, faces, spare=ran))
    return results


def _try(
    backend: str, folder: Path, weights: dict[str, F32], faces: U8, *, spare: bool
) -> SelfTestResult:
    """Try a backend; `spare` where another one runs on this GPU, so that it need not."""
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
                options = None if backend == ONNXRUNTIME else _OPTIONS
                built = build_engine(folder, precision, backend, options=options)
            if backend in COMPILE_ONLY and (lack := lacking(backend)):
                details.append(f"{precision}: {built.describe_layers()}, not run: {lack}")
                outcome = "compiled"
                continue
            try:
                worst = _deviation(folder, precision, backend, faces, expected)
            except MachineError as error:
                if not (spare and backend in COMPILE_ONLY):
                    raise
                details.append(f"{precision}: {built.describe_layers()}, not run: {error.message}")
                outcome = "compiled"
                continue
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


def make_sample_bundle(root: Path, track: Track = silent) -> Bundle:
    """Write the sample bundle: FP32, FP16 and INT8 models, golden faces that are synthetic.

    Args:
        root: The bundle's folder, which does not exist.
        track: Shows progress.
    """
    spec, faces = InputSpec(), golden_faces(None)
    with transaction(root, "export", {"sample": True}) as change:
        change.spec, change.embedding_dim = spec, _SAMPLE_DIM
        plain = change.path(SOURCES["fp32"], "model")
        # Random weights give all faces nearly one embedding; around their mean they differ.
        mean = _embed(plain, sample_network(np.dtype(np.float32)), spec, faces).mean(axis=0)
        bias = (-_SAMPLE_CENTERED * mean).astype(np.float32)
        half = sample_network(np.dtype(np.float16), bias)
        change.path(SOURCES["fp16"], "model").write_bytes(half.SerializeToString())
        embeddings = _embed(plain, sample_network(np.dtype(np.float32), bias), spec, faces)
        write_golden(
            change.path("golden.npz", "golden faces"), faces, embeddings, "onnx", exact=None
        )
    bundle = open_bundle(root)
    return calibrate(bundle, open_faces(_SAMPLE_FACES), track=track, force=True).bundle


def _embed(path: Path, model: ModelProto, spec: InputSpec, faces: U8) -> F32:
    """Write a model and embed faces with it."""
    path.write_bytes(model.SerializeToString())
    with CpuSession(path, "fp32", spec) as session:
        return session.embed_tensor(preprocess(faces, spec))


def sample_network(dtype: "np.dtype[np.floating]", bias: F32 | None = None) -> ModelProto:
    """The network, `(batch, 3, 112, 112)` to `(batch, 128) float32`, with weights by He et al. 2015.

    Args:
        dtype: float32, or float16 for weights and arithmetic of half precision.
        bias: `(128,) float32`, added to the embeddings; None adds nothing.
    """
    maker = _Maker(dtype, _SAMPLE_SEED)
    x = maker.cast("face", TensorProto.FLOAT16) if dtype == np.float16 else "face"
    x = maker.prelu(maker.conv(x, 64, 3, 3, stride=2), 64)
    x = maker.prelu(maker.conv(x, 64, 64, 3, groups=64), 64)
    channels, side = 64, ALIGNED_SIZE // 2
    for out, stride, repeats in _SAMPLE_BLOCKS:
        for repeat in range(repeats):
            step = 2 if repeat == 0 and stride == 2 or (channels == 64 and repeat == 0) else 1
            y = maker.bottleneck(x, channels, out, step)
            x = maker.add("Add", [x, y]) if step == 1 and channels == out else y
            channels, side = out, (side + 1) // 2 if step == 2 else side
    x = maker.conv(x, channels, channels, side, groups=channels, pad=0)
    x = maker.add("Flatten", [x])
    shift = np.zeros(_SAMPLE_DIM) if bias is None else bias
    last = [x, maker.weight((_SAMPLE_DIM, channels)), maker.constant(shift.astype(dtype))]
    x = maker.add("Gemm", last, transB=1)
    return maker.model(maker.cast(x, TensorProto.FLOAT) if dtype == np.float16 else x)


class _Maker:
    """Collects nodes and weights; nodes and tensors are named by their number."""

    def __init__(self, dtype: "np.dtype[np.floating]", seed: int) -> None:
        self.dtype, self.random = dtype, np.random.default_rng(seed)
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []

    def weight(self, shape: tuple[int, ...], spread: float | None = None) -> str:
        deviation = np.sqrt(2.0 / np.prod(shape[1:])) if spread is None else spread
        values = self.random.normal(0, deviation, shape).astype(self.dtype)
        return self.constant(values)

    def constant(self, values: "np.ndarray[tuple[int, ...], np.dtype[np.floating]]") -> str:
        name = f"weight_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def add(self, op: str, inputs: list[str], **attributes: Any) -> str:
        name = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def cast(self, x: str, kind: int) -> str:
        return self.add("Cast", [x], to=kind)

    def conv(
        self,
        x: str,
        out: int,
        channels: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        pad: int | None = None,
    ) -> str:
        weight = self.weight((out, channels // groups, kernel, kernel))
        bias = self.weight((out,), spread=0.1)
        return self.add(
            "Conv",
            [x, weight, bias],
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[kernel // 2 if pad is None else pad] * 4,
            group=groups,
        )

    def prelu(self, x: str, channels: int) -> str:
        slope = self.random.uniform(0.1, 0.4, (channels, 1, 1)).astype(self.dtype)
        return self.add("PRelu", [x, self.constant(slope)])

    def bottleneck(self, x: str, channels: int, out: int, stride: int) -> str:
        wide = 2 * channels
        y = self.prelu(self.conv(x, wide, channels, 1), wide)
        y = self.prelu(self.conv(y, wide, wide, 3, stride=stride, groups=wide), wide)
        return self.conv(y, out, wide, 1)

    def model(self, output: str) -> ModelProto:
        self.nodes[-1].output[0] = "embedding"
        shape = ("batch", 3, ALIGNED_SIZE, ALIGNED_SIZE)
        graph = helper.make_graph(
            self.nodes,
            "sample",
            [helper.make_tensor_value_info("face", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ("batch", _SAMPLE_DIM))],
            self.weights,
        )
        opset = [helper.make_opsetid("", 17)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=8)
        checker.check_model(model, full_check=True)
        return model
