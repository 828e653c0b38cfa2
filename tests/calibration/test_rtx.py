"""NVIDIA's own parser and compiler take the model, and run its dense layers in INT8.

Compile-only: nothing here has run on a GPU.
"""

from typing import Any

import onnx
import pytest
from bench import Bench, BenchFaces, compiled, trained
from fitted import fit

from fr_edge.calibration.histogram import Histogram
from fr_edge.calibration.qdq import quantize_onnx
from fr_edge.calibration.search.mixed_precision import REASON
from fr_edge.graph.int8_fp16 import int8_fp16_model
from fr_edge.graph.layers import choose_int8_layers
from fr_edge.runtime.trt.builder import compile_plan
from fr_edge.runtime.trt.config import EngineOptions
from fr_edge.runtime.trt.layers import node_precisions, reformats

rtx: Any = pytest.importorskip(
    "tensorrt_rtx", reason="the compile check needs tensorrt-rtx (pip install 'fr-edge[rtx]')"
)

SHIFT_OR_SCALE = ("/shifted", "/scaled")


@pytest.mark.parametrize("flavour", [lambda m: m, int8_fp16_model], ids=["float32", "float16"])
def test_every_dense_layer_is_int8(
    flavour: Any, model: onnx.ModelProto, histograms: dict[str, Histogram]
) -> None:
    choice = choose_int8_layers(model)
    quantized = flavour(quantize_onnx(model, fit(model, histograms)))
    options = EngineOptions(batch=(1, 1, 4))
    built = compile_plan(rtx, quantized.SerializeToString(), (3, 112, 112), "int8", options)
    precisions = node_precisions(quantized, built.layers)
    assert {name for name, precision in precisions.items() if precision == "int8"} == set(
        choice.int8
    )
    # PReLU, activation shift and requantizing are one kernel, not layers of their own.
    assert not [layer for layer in built.layers if layer.name.endswith("/shifted")]


def test_layers_that_a_budget_keeps_in_float_are_fp16(
    model: onnx.ModelProto, histograms: dict[str, Histogram]
) -> None:
    left = choose_int8_layers(model).int8[1]
    choice = choose_int8_layers(model, {left: REASON})
    quantized = int8_fp16_model(quantize_onnx(model, fit(model, histograms), choice))
    options = EngineOptions(batch=(1, 1, 4))
    built = compile_plan(rtx, quantized.SerializeToString(), (3, 112, 112), "int8", options)
    precisions = node_precisions(quantized, built.layers)
    assert precisions[left] == "fp16"
    assert {name for name, precision in precisions.items() if precision == "int8"} == set(
        choice.int8
    )
    assert set(precisions.values()) == {"int8", "fp16"}


@pytest.mark.parametrize("name", ["residual", "excite", "tokens"])
def test_dense_layers_of_trained_networks_are_int8(name: str, bench_faces: BenchFaces) -> None:
    """PReLU, SiLU, GELU, LayerNorm, gates, attention, with shifts and products: one kernel each."""
    bench = Bench(trained(name), bench_faces)
    quantized = bench.quantized()
    inserted = [node.name for node in quantized.graph.node if node.name.endswith(SHIFT_OR_SCALE)]
    options = EngineOptions(batch=(1, 1, 4))
    built = compile_plan(rtx, quantized.SerializeToString(), (3, 112, 112), "int8", options)
    precisions = node_precisions(quantized, built.layers)
    assert {node for node, p in precisions.items() if p == "int8"} == set(bench.choice.int8)
    assert inserted
    assert not [layer for layer in built.layers if layer.name.endswith(SHIFT_OR_SCALE)]
    assert reformats(built.layers) == 0
    # No INT8 layer is followed by a second kernel before its reader's numbers are rounded.
    kernels = [layer for layer in built.layers if layer.kind == "kgen" and "int8" in layer.outputs]
    assert len(kernels) <= len(bench.choice.tensors)


def test_dense_layers_of_ghost_edge_and_swin_blocks_are_int8(bench_faces: BenchFaces) -> None:
    """Blocks of GhostNet, EdgeFace's EdgeNeXt and Swin, in a network of families.py."""
    bench = Bench(trained("families"), bench_faces)
    precisions, rows = compiled(bench, rtx)
    # Linear layers of attention and of tokens, 1x1 convolutions, both layers of each gate, the head.
    assert len(bench.choice.int8) == 25
    assert {node for node, p in precisions.items() if p == "int8"} == set(bench.choice.int8)
    assert {node for node, p in precisions.items() if p == "fp16"} == set(bench.choice.float_layers)
    assert reformats(rows) == 0
    assert not [row for row in rows if row.name.endswith(SHIFT_OR_SCALE)]
    kernels = [row for row in rows if row.kind == "kgen" and "int8" in row.outputs]
    assert len(kernels) <= len(bench.choice.tensors)
    assert bench.loss() < 0.05
