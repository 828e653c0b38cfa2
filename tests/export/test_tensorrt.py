"""NVIDIA's own parser and builder take every model that export writes (TensorRT-RTX compiles without a GPU)."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from fr_edge.export.fp16 import make_fp16_model
from fr_edge.export.parity import probe_inputs
from fr_edge.faces.contract import PRESETS
from fr_edge.graph.prelu import fusible

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")


class Log(trt.ILogger):
    """Keeps what the builder says; the layer table comes in one verbose message."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        self.said.append(message)


def compile_engine(model: ModelProto) -> tuple[int, str]:
    """Parse and build for batches 1 to 8; the engine's size in bytes and its layer table."""
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    assert parser.parse(model.SerializeToString()), parser.get_error(0).desc()
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    profile = builder.create_optimization_profile()
    shape = tuple(network.get_input(0).shape[1:])
    profile.set_shape("face", (1, *shape), (4, *shape), (8, *shape))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None, log.said[-5:]
    tables = [message for message in log.said if message.startswith("Layers:")]
    return plan.nbytes, tables[-1] if tables else ""


NETS: dict[str, dict[str, Any]] = {
    "plain": {},
    "fixed": {"batch": 1, "flatten": "shape"},
    "nhwc": {"nhwc": True, "inside": True},
    "unit": {"unit": True, "opset": 21},
    "global convolution": {"head": "Conv", "flatten": "squeeze"},
}


@pytest.mark.parametrize("name", NETS)
def test_fp32_and_fp16_compile(name: str, tools: SimpleNamespace) -> None:
    model = tools.standard(tools.build(**NETS[name]))
    inputs = probe_inputs(PRESETS["insightface"])
    half = make_fp16_model(model, inputs, tools.run(model, inputs))
    assert half is not None
    _, table = compile_engine(model)
    assert "Half" not in table
    _, table = compile_engine(half.model)
    assert "Half" in table


def test_mixed_precision_compiles(tools: SimpleNamespace) -> None:
    """A layer that overflows stays float between half ones."""
    model = tools.standard(tools.build())
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
    for tensor in model.graph.initializer:
        factor = {"d_w": 1e6, gemm.input[1]: 1e-6}.get(tensor.name.removesuffix("_folded"))
        if tensor.name in (gemm.input[1], *model.graph.node[7].input) and factor:
            array = numpy_helper.to_array(tensor) * np.float32(factor)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    inputs = probe_inputs(PRESETS["insightface"])
    half = make_fp16_model(model, inputs, tools.run(model, inputs))
    assert half is not None
    assert "n_d" in half.result.kept_float
    _, table = compile_engine(half.model)
    assert "Half" in table
    assert "Float" in table


def test_prelu_is_fused_into_the_convolution(tools: SimpleNamespace) -> None:
    """The reason for `fusible`: one kernel fewer per activation (docs/decisions/0003)."""
    model = tools.standard(tools.build())
    kernels = {
        form: compile_engine(each)[1].count("LayerType:")
        for form, each in (("prelu", model), ("two sides", fusible(model)))
    }
    activations = sum(node.op_type == "PRelu" for node in model.graph.node)
    assert kernels["two sides"] <= kernels["prelu"] - activations
