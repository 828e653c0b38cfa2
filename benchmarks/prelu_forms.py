"""PReLU in three exact forms, measured: TensorRT-RTX's engine and onnxruntime's time.

    python benchmarks/prelu_forms.py MODEL.onnx [MODEL.int8.onnx ...]

MODEL is what fr-edge wrote (input `face`). Per file and form one JSON line: whether the outputs are
equal bit for bit, the engine's size and layers by kernel, and onnxruntime's time relative to PReLU,
all forms timed in turns in one process.
"""

import json
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, NodeProto, helper

from fr_edge.graph.prelu import fusible

ROUNDS, FACES = 15, 4


def maximum(model: ModelProto) -> ModelProto:
    """A copy with `max(x, a x)` for each PRelu; right where 0 <= a <= 1, which is checked below."""
    copy = ModelProto()
    copy.CopyFrom(model)
    nodes: list[NodeProto] = []
    for node in copy.graph.node:
        if node.op_type == "PRelu":
            (x, slope), y = node.input, node.output[0]
            nodes.append(helper.make_node("Mul", [x, slope], [f"{y}#low"]))
            nodes.append(helper.make_node("Max", [x, f"{y}#low"], [y]))
        else:
            nodes.append(node)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def compiled(model: ModelProto) -> dict[str, Any]:
    """TensorRT-RTX's engine for batch 1 on compute capability 8.6."""
    import tensorrt_rtx as trt

    class Log(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self.said: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            self.said.append(message)

    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model.SerializeToString()):
        return {"error": parser.get_error(0).desc()}
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    profile = builder.create_optimization_profile()
    shape = (1, *network.get_input(0).shape[1:])
    profile.set_shape("face", shape, shape, shape)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return {"error": log.said[-1]}
    table = next(m for m in reversed(log.said) if m.startswith("Layers:"))
    rows = [line for line in table.splitlines() if line.startswith("Name:")]
    kinds = Counter(
        re.sub(r"[\d_x]+.*", "", found) for found in re.findall(r"LayerType: (\w+)", table)
    )
    return {"bytes": plan.nbytes, "layers": len(rows), "kinds": dict(kinds)}


def main() -> None:
    for file in [Path(name) for name in sys.argv[1:] if not name.startswith("--")]:
        model = onnx.load(str(file))
        forms = {"prelu": model, "max": maximum(model), "two sides": fusible(model)}
        shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:]]
        faces = np.random.default_rng(0).uniform(-1, 1, (FACES, *shape)).astype(np.float32)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        runs = {
            form: onnxruntime.InferenceSession(each.SerializeToString(), options)
            for form, each in forms.items()
        }
        outputs = {form: run.run(None, {"face": faces})[0] for form, run in runs.items()}
        times: dict[str, list[float]] = {form: [] for form in forms}
        for _ in range(ROUNDS):
            for form, run in runs.items():
                start = time.process_time()
                run.run(None, {"face": faces})
                times[form].append(time.process_time() - start)
        base = float(np.median(times["prelu"]))
        for form, each in forms.items():
            difference = float(np.abs(outputs[form] - outputs["prelu"]).max())
            result = {
                "file": file.name,
                "form": form,
                "max_abs_difference": difference,
                "relative_time": round(float(np.median(times[form])) / base, 3),
                "engine": compiled(each),
            }
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
