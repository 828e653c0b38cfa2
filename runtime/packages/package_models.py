"""The ONNX files of a package: unit embeddings, and the contract in the file itself.

docs/contract.md describes the contract, docs/contract.schema.json its JSON.
"""

import json
from collections import Counter
from typing import Any

import numpy as np
from onnx import ModelProto, helper, numpy_helper

from ...errors import BundleError, ModelError, UsageError
from ...faces.contract import InputSpec, aligned_template
from ...graph.frame_input import InputKind, with_input

PACKAGE_CONTRACT_KEY = "fr_edge.contract"  # of the metadata of a package's models
CONTRACT_SCHEMA = 1  # raised when a reader of the contract would have to change

_MIN_NORM = 1e-12  # is added: an embedding of zeros stays one, others keep their bits
_MIN_OPSET = 13
_AXES_INPUT_OPSET = 18  # from here on ReduceL2 takes its axes as an input

LANDMARK_NAMES = ("left eye", "right eye", "nose tip", "left mouth corner", "right mouth corner")


def package_model(
    model: ModelProto, spec: InputSpec, kind: InputKind, precision: str, model_sha256: str
) -> ModelProto:
    """A network as a package holds it.

    Args:
        model: A bundle's network, one input `(N, C, H, W) float32`, one output `(N, D) float32`.
        spec: Its input contract.
        kind: What the result takes.
        precision: "fp32", "fp16" or "int8", for the contract.
        model_sha256: Of the bundle's file, for the contract.

    Returns:
        A copy whose output has unit length, with the contract under `PACKAGE_CONTRACT_KEY`.

    Raises:
        BundleError: The contract cannot be expressed with that input; the message says why.
    """
    try:
        copy = with_input(model, spec, kind)
    except (UsageError, ModelError) as error:
        raise BundleError(f"the package's {kind} model: {error.message}", error.hint) from error
    if copy is model:
        copy = ModelProto()
        copy.CopyFrom(model)
    if kind != "frame" and not spec.l2_normalised:
        _add_unit_length(copy)
    _write_out(copy)
    del copy.metadata_props[:]
    entry = copy.metadata_props.add()
    entry.key = PACKAGE_CONTRACT_KEY
    entry.value = json.dumps(package_contract(copy, spec, kind, precision, model_sha256))
    return copy


def package_contract(
    model: ModelProto, spec: InputSpec, kind: InputKind, precision: str, model_sha256: str
) -> dict[str, Any]:
    """What a program must know to use a model of a package, as JSON types.

    Args:
        model: The model, with its inputs and output.
        spec: The network's input contract.
        kind: What it takes.
        precision: "fp32", "fp16" or "int8".
        model_sha256: Of the bundle's file that it was made of.
    """
    names = [value.name for value in model.graph.input]
    batch = model.graph.input[-1].type.tensor_type.shape.dim[0].dim_value or None
    output = model.graph.output[0]
    return {
        "schema": CONTRACT_SCHEMA,
        "kind": kind,
        "precision": precision,
        "inputs": dict(zip(names, _shapes(spec, kind, batch), strict=True)),
        "output": {
            "name": output.name,
            "dim": output.type.tensor_type.shape.dim[1].dim_value,
            "unit_length": True,
        },
        "faces_per_run": batch,
        "network": spec.to_json(),
        "applied_by_model": kind != "tensor",
        "aligned_size": spec.crop_side,
        "template": aligned_template(spec.crop_side).round(4).tolist(),
        "landmarks": list(LANDMARK_NAMES),
        "model_sha256": model_sha256,
    }


def _shapes(spec: InputSpec, kind: InputKind, batch: int | None) -> list[dict[str, Any]]:
    """Type, shape and channel order of each input; -1 for what is free."""
    faces = batch or -1
    if kind == "frame":
        return [
            {"type": "uint8", "shape": [1, -1, -1, 3], "channels": "RGB"},
            {"type": "float32", "shape": [faces, 5, 2]},
        ]
    if kind == "crop":
        shape = [faces, spec.crop_side, spec.crop_side, 3]
        return [{"type": "uint8", "shape": shape, "channels": "RGB"}]
    return [{"type": "float32", "shape": [faces, *spec.shape], "channels": spec.channels}]


def _write_out(model: ModelProto) -> None:
    """What ONNX leaves to its defaults and OpenCV's DNN module needs: `kernel_shape`, and `transB = 1`.

    OpenCV 4.6 does not load the first, and gives other results for a Gemm whose weight is square without the second.
    """
    weights = {item.name: item for item in model.graph.initializer}
    used = Counter(name for node in model.graph.node for name in node.input)
    for node in model.graph.node:
        names = {attribute.name for attribute in node.attribute if attribute.i or attribute.ints}
        weight = weights.get(node.input[1]) if len(node.input) > 1 else None
        if weight is None:
            continue
        if node.op_type == "Conv" and "kernel_shape" not in names:
            node.attribute.append(helper.make_attribute("kernel_shape", weight.dims[2:]))
        if node.op_type == "Gemm" and "transB" not in names and used[weight.name] == 1:
            turned = np.ascontiguousarray(numpy_helper.to_array(weight).T)
            weight.CopyFrom(numpy_helper.from_array(turned, weight.name))
            kept = [attribute for attribute in node.attribute if attribute.name != "transB"]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute("transB", 1)])


def _add_unit_length(model: ModelProto) -> None:
    """Divide the output by its length."""
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset < _MIN_OPSET:
        raise BundleError(
            f"the model has opset {opset}, a package needs {_MIN_OPSET}",
            "export it again with `fr-edge export`",
        )
    if opset < _AXES_INPUT_OPSET:  # OpenCV 4.6 reads axes as an attribute only
        length = helper.make_node(
            "ReduceL2", ["unit_embedding"], ["unit_norm"], axes=[1], keepdims=1
        )
    else:
        inputs = ["unit_embedding", "unit_axis"]
        length = helper.make_node("ReduceL2", inputs, ["unit_norm"], keepdims=1)
    graph = model.graph
    target, source = graph.output[0].name, "unit_embedding"
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == target:
                    names[index] = source
    graph.node.extend(
        [
            length,
            helper.make_node("Add", ["unit_norm", "unit_least"], ["unit_divisor"]),
            helper.make_node(
                "Shape", [source], ["unit_shape"]
            ),  # OpenCV 4.6 divides equal shapes only
            helper.make_node("Expand", ["unit_divisor", "unit_shape"], ["unit_divisors"]),
            helper.make_node("Div", [source, "unit_divisors"], [target]),
        ]
    )
    constants = {"unit_least": np.array([_MIN_NORM], "f4")}
    if opset >= _AXES_INPUT_OPSET:
        constants["unit_axis"] = np.array([1], np.int64)
    graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in constants.items())
