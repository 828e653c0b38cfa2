"""How export's time grows with the network, and how folding compares with onnxscript's rules.

    python benchmarks/export_scale.py [NODES ...]

First 400 blocks of Conv and BatchNormalization are folded by fr-edge and by onnxscript's rewrite
rules, in turns in one process, from ModelProto to ModelProto; then a residual network of each number
of nodes (default 1000 2000) is exported as a whole. One JSON line each.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnxscript.rewriter import rewrite
from onnxscript.rewriter.rules.common._fuse_batchnorm import rules as onnxscript_rules

from fr_edge.export.batchnorm import fold_batchnorm
from fr_edge.export.export import export_onnx
from fr_edge.faces.contract import PRESETS

ROUNDS, BLOCKS, WIDTH = 5, 400, 16


def chain(blocks: int, *, residual: bool) -> ModelProto:
    """Convolutions with BatchNormalization; `residual` adds PReLU and a sum to each."""
    draw = np.random.default_rng(0)
    nodes: list[NodeProto] = []
    weights = []

    def weight(name: str, array: np.ndarray) -> str:
        weights.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def add(op: str, inputs: list[str], name: str, **attributes: object) -> str:
        nodes.append(helper.make_node(op, inputs, [name], f"node_{name}", **attributes))
        return name

    x, channels = "data", 3
    for i in range(blocks):
        kernel = weight(f"w{i}", draw.normal(0, (channels * 9) ** -0.5, (WIDTH, channels, 3, 3)))
        strides = [1, 1] if i else [8, 8]
        y = add("Conv", [x, kernel], f"conv{i}", pads=[1] * 4, strides=strides)
        norm = [(0.1, 0.2), (-0.3, 0.3), (-0.3, 0.3), (0.5, 2)]
        parts = [weight(f"n{i}_{k}", draw.uniform(*ab, WIDTH)) for k, ab in enumerate(norm)]
        y = add("BatchNormalization", [y, *parts], f"norm{i}")
        if residual:
            slope = weight(f"slope{i}", draw.uniform(0, 0.5, (WIDTH, 1, 1)))
            y = add("PRelu", [y, slope], f"act{i}")
            y = add("Add", [y, x], f"sum{i}") if i else y
        x, channels = y, WIDTH
    x = add("Flatten", [x], "flat")
    add("Gemm", [x, weight("head", draw.normal(0, 0.02, (64, WIDTH * 196)))], "out", transB=1)
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, ["N", 3, 112, 112])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 64])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def norms(model: ModelProto) -> int:
    return sum(node.op_type == "BatchNormalization" for node in model.graph.node)


def compare_folding() -> dict[str, object]:
    model = chain(BLOCKS, residual=False)
    times: dict[str, list[float]] = {"fr_edge": [], "onnxscript": []}
    for _ in range(ROUNDS):
        start = time.perf_counter()
        ours, _ = fold_batchnorm(model)
        middle = time.perf_counter()
        theirs = rewrite(model, pattern_rewrite_rules=onnxscript_rules)
        times["fr_edge"].append(middle - start)
        times["onnxscript"].append(time.perf_counter() - middle)
        assert norms(ours) == norms(theirs) == 0
    best = {name: min(values) for name, values in times.items()}
    return {
        "blocks": BLOCKS,
        "fold_s": {name: round(value, 3) for name, value in best.items()},
        "ratio": round(best["fr_edge"] / best["onnxscript"], 2),
    }


def time_export(nodes: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "chain.onnx")
        onnx.save(chain(nodes // 4, residual=True), str(path))
        start, cpu = time.perf_counter(), time.process_time()
        result = export_onnx(path, Path(folder, "bundle"), spec=PRESETS["insightface"])
        return {
            "nodes": result.summary.nodes.before,
            "export_s": round(time.perf_counter() - start, 2),
            "cpu_s": round(time.process_time() - cpu, 2),
            "min_cosine": result.summary.check.min_cosine,
        }


if __name__ == "__main__":
    print(json.dumps(compare_folding()), flush=True)
    for size in map(int, sys.argv[1:] or ["1000", "2000"]):
        print(json.dumps(time_export(size)), flush=True)
