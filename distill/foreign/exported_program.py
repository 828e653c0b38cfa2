"""torch.export's files (`.pt2`): a graph of ATen operators as JSON, and weights as raw numbers.

They are read here and computed operator by operator. `torch.export.load` is not used: it unpickles
objects and compiles text of the file (torch 2.13).
"""

import logging
import operator
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...documents import decode_json
from ...errors import ModelError
from ...reading import check_limit, open_file
from .tensor_operators import is_tensor_operator

logger = logging.getLogger(__name__)

_TYPES = {  # numbers of torch._export's schema 8, ScalarType
    **{1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64},
    **{6: torch.float16, 7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16},
}

_LAYOUTS = {7: torch.strided}  # schema 8, Layout

_FORMATS = {  # schema 8, MemoryFormat
    1: torch.contiguous_format,
    2: torch.channels_last,
    4: torch.preserve_format,
}

_OPERATORS = {  # Python's, on sizes
    f"_operator.{name}": getattr(operator, name)
    for name in ("add", "sub", "mul", "floordiv", "mod", "neg", "eq", "ne", "lt", "le", "gt", "ge")
}

_VALUES = ("as_int", "as_ints", "as_float", "as_floats", "as_bool", "as_bools", "as_string")

Json = Mapping[str, Any]


@dataclass(frozen=True)
class _Argument:
    """An input of an operator."""

    name: str
    arg: dict[str, Any]


@dataclass(frozen=True)
class _Node:
    """One call: `target` on `inputs`."""

    target: str
    inputs: list[_Argument]
    outputs: list[dict[str, Any]]


@dataclass(frozen=True)
class _Graph:
    nodes: list[_Node]
    tensor_values: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Signature:
    input_specs: list[dict[str, Any]]
    output_specs: list[dict[str, Any]]


@dataclass(frozen=True)
class _GraphModule:
    graph: _Graph
    signature: _Signature


@dataclass(frozen=True)
class _Program:
    graph_module: _GraphModule
    schema_version: dict[str, int]


@dataclass(frozen=True)
class _Payload:
    """Where a tensor's numbers are, and its shape."""

    path_name: str
    use_pickle: bool = False
    tensor_meta: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Payloads:
    config: dict[str, _Payload]


class ProgramNetwork(nn.Module):
    """A network that computes a program's graph.

    Args:
        nodes: The calls, in order.
        weights: Name in the graph -> tensor.
        face: Name of the image in the graph.
        outputs: Names of the outputs.
        batch: Faces that the program was exported for; None where it takes any number.
    """

    def __init__(
        self,
        nodes: list[_Node],
        weights: Mapping[str, Tensor],
        face: str,
        outputs: list[str],
        batch: int | None,
    ) -> None:
        super().__init__()
        self.nodes, self.face, self.outputs, self.batch = nodes, face, outputs, batch
        self.names = list(weights)
        for index, tensor in enumerate(weights.values()):
            self.register_buffer(f"weight_{index}", tensor)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        values: dict[str, Any] = {self.face: x}
        for index, name in enumerate(self.names):
            values[name] = getattr(self, f"weight_{index}")
        for node in self.nodes:
            _compute(node, values)
        return tuple(values[name] for name in self.outputs)


def is_exported_program(members: list[str]) -> bool:
    """Tell whether an archive of torch holds a program of torch.export.

    Args:
        members: Names of its files.
    """
    return any("/models/" in f"/{m}" or m == "serialized_exported_program.json" for m in members)


def load_exported_program(path: Path) -> ProgramNetwork:
    """Read a network that `torch.export.save` wrote.

    Args:
        path: The file.

    Returns:
        The network; the values of its outputs are given as a tuple.

    Raises:
        ModelError: The file is damaged, of another version, needs pickles, or calls what is not a
            tensor operator: the message names it.
    """
    with open_file(path, "WEIGHTS_MB", ModelError) as stream:
        try:
            archive = zipfile.ZipFile(stream)
        except Exception as error:  # BadZipFile, NotImplementedError, UnicodeDecodeError
            raise ModelError(f"{path} is not a torch.export file: {error}") from error
        check_limit("WEIGHTS_MB", sum(i.file_size for i in archive.infolist()), path, ModelError)
        members = {name.partition("/")[2]: name for name in archive.namelist()}
        if "models/model.json" not in members:
            raise ModelError(
                f"{path} was written by an older torch.export, or holds other programs",
                "save it again with torch 2.8 or later, or give an ONNX file of it",
            )
        try:
            document = archive.read(members["models/model.json"])
            program = decode_json(document, _Program, path)
            tensors = {
                **_tensors(path, archive, members, "weights"),
                **_tensors(path, archive, members, "constants"),
            }
        except ModelError:
            raise
        except Exception as error:  # damaged JSON, numbers that do not fit
            raise ModelError(f"{path} is not a torch.export file: {error}") from error
    if program.schema_version.get("major") != 8:
        version = ".".join(map(str, program.schema_version.values()))
        raise ModelError(f"{path} has torch.export's schema {version}, expected 8")
    network = _network(path, program, tensors)
    logger.info("%s is a torch.export program of tensor operators alone", path.name)
    return network.eval()


def _tensors(
    path: Path, archive: zipfile.ZipFile, members: Mapping[str, str], kind: str
) -> dict[str, Tensor]:
    config = members.get(f"data/{kind}/model_{kind}_config.json")
    if config is None:
        return {}
    payloads = decode_json(archive.read(config), _Payloads, path).config
    tensors = {}
    for name, payload in payloads.items():
        meta = payload.tensor_meta
        if payload.use_pickle or meta is None:
            raise ModelError(f"{path}: {name} is a pickle, and reading it could run code: refused")
        sizes, strides = ([int(s["as_int"]) for s in meta[key]] for key in ("sizes", "strides"))
        dtype = _TYPES[meta["dtype"]]
        offset = int(meta["storage_offset"]["as_int"])
        data = bytearray(archive.read(members[f"data/{kind}/{payload.path_name}"]))
        flat = torch.frombuffer(data, dtype=dtype) if data else torch.zeros(0, dtype=dtype)
        extent = 1 + sum((s - 1) * step for s, step in zip(sizes, strides, strict=True))
        if min((*sizes, *strides, offset, 0)) < 0 or prod(sizes) > flat.numel():
            raise ModelError(f"{path}: {name} has fewer numbers than its shape announces")
        if prod(sizes) and offset + extent > flat.numel():
            raise ModelError(f"{path}: {name} reaches beyond its numbers")
        tensors[name] = torch.as_strided(flat, sizes, strides, offset)
    return tensors


def _network(path: Path, program: _Program, tensors: Mapping[str, Tensor]) -> ProgramNetwork:
    graph, signature = program.graph_module.graph, program.graph_module.signature
    for node in graph.nodes:
        if not _is_known(node.target):
            raise ModelError(
                f"{path} is a torch.export program that calls {node.target}, which no face network"
                " needs: not run",
                "if you trust it: torch.onnx.export(torch.export.load(FILE), ...), and give the"
                " ONNX file",
            )
    weights, faces = {}, []
    for spec in signature.input_specs:
        kind, body = next(iter(spec.items()))
        names = [value for key, value in body.items() if key.endswith("_name")]
        if kind == "user_input":
            faces += [value["name"] for value in body["arg"].values() if isinstance(value, dict)]
        elif names and names[0] in tensors:
            weights[body["arg"]["name"]] = tensors[names[0]]
        else:
            raise ModelError(f"{path}: there are no numbers for {names[0] if names else kind}")
    if len(faces) != 1:
        raise ModelError(f"{path} has {len(faces)} inputs ({', '.join(faces)}); expected one image")
    outputs = [
        value["name"]
        for spec in signature.output_specs
        for value in spec.get("user_output", {}).get("arg", {}).values()
        if isinstance(value, dict)
    ]
    sizes = graph.tensor_values.get(faces[0], {}).get("sizes", [])
    batch = sizes[0].get("as_int") if sizes else None
    return ProgramNetwork(graph.nodes, weights, faces[0], outputs, batch)


def _is_known(target: str) -> bool:
    parts = target.split(".")
    if parts[:3] == ["torch", "ops", "aten"]:
        return len(parts) == 5 and is_tensor_operator(parts[3])
    return target in _OPERATORS


def _compute(node: _Node, values: dict[str, Any]) -> None:
    """Call one operator; its results are added to `values`."""
    arguments = {each.name: _value(each.arg, values) for each in node.inputs}
    name, overload = node.target.split(".")[-2:]
    if node.target in _OPERATORS:
        result = _OPERATORS[node.target](*arguments.values())
    elif name == "sym_size":  # a traced size stays one
        result = arguments["self"].shape[arguments["dim"]]
    elif name in ("_assert_tensor_metadata", "_assert_scalar", "_assert_async"):
        return
    else:
        result = getattr(getattr(torch.ops.aten, name), overload)(**arguments)
    outputs = [value for each in node.outputs for value in each.values()]
    if len(outputs) == 1 and isinstance(outputs[0], list):
        outputs = outputs[0]
    results = result if isinstance(result, tuple | list) else (result,)
    for output, value in zip(outputs, results, strict=False):
        if isinstance(output, dict):
            values[output.get("name") or output.get("as_name") or ""] = value


def _value(argument: Json, values: Mapping[str, Any]) -> Any:
    """What a serialized argument stands for."""
    kind, value = next(iter(argument.items()))
    if kind in _VALUES:
        return value
    if kind == "as_tensor":
        return values[value["name"]]
    if kind == "as_tensors":
        return [values[each["name"]] for each in value]
    if kind == "as_optional_tensors":
        return [
            values[each["as_tensor"]["name"]] if "as_tensor" in each else None for each in value
        ]
    if kind in ("as_sym_int", "as_sym_bool", "as_sym_float"):
        return _size(value, values)
    if kind in ("as_sym_ints", "as_sym_bools", "as_sym_floats"):
        return [_size(each, values) for each in value]
    if kind == "as_scalar_type":
        return _TYPES[value]
    if kind == "as_memory_format":
        return _FORMATS.get(value, torch.preserve_format)
    if kind == "as_layout":
        return _LAYOUTS.get(value, torch.strided)
    if kind == "as_device":
        return torch.device("cpu")
    if kind == "as_none":
        return None
    raise ModelError(f"an argument of kind {kind} is not known")


def _size(value: Json, values: Mapping[str, Any]) -> Any:
    kind, content = next(iter(value.items()))
    return values[content] if kind == "as_name" else content
