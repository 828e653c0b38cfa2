"""Reads ONNX files, strangers' too: size, side files, and that the graph is what its operators need.

What leaves here can be walked without care: every tensor has the data that its shape announces,
every node of an ONNX operator has the inputs, outputs and kinds of attributes that the operator
needs, and nothing in it is random. What it would cost to run the network is `trial_run`'s question.
"""

from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

import onnx.inliner
from google.protobuf.message import DecodeError
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto
from onnx.helper import tensor_dtype_to_np_dtype
from onnx.numpy_helper import to_array

from .errors import ModelError
from .files import real_path
from .inference import first_line
from .reading import check_limit, open_file, read_file

_STANDARD = ("", "ai.onnx")  # names of the ONNX operators' domain

_RANDOM = (
    *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
    *("Multinomial", "Bernoulli"),
)

_PACKED = {"INT4": 2, "UINT4": 2, "FLOAT4E2M1": 2, "INT2": 4, "UINT2": 4}  # numbers per byte

_MAX_RANK = 32

_OTHER_FILES = (  # place and beginning of files that are taken for networks -> what they are, what to do
    (0, b"PK\x03\x04", "a zip archive", "if PyTorch wrote it, name it .pt"),
    (0, b"\x80\x02", "a pickle", "if PyTorch wrote it, name it .pth"),
    (4, b"TFL3", "a TensorFlow Lite model", "convert it with tf2onnx"),
    (0, b"\x89HDF", "an HDF5 file, as Keras writes", "convert it with tf2onnx"),
    (0, (0x112).to_bytes(8, "little"), "weights of MXNet", "export it with MXNet's mx2onnx"),
    (0, b"7767517\n", "an ncnn network", "give the file that it was converted from"),
    (0, b"{", "JSON, as MXNet's symbols are", "export it with MXNet's mx2onnx"),
    (0, b"ftrt", "a TensorRT engine", "give the network that it was built from"),
    (4, b"ftyp", "a film, or a HEIC or AVIF image", "give the network's file"),
    (0, b"GIF8", "a GIF image", "give the network's file"),
    (0, b"\xff\xd8\xff", "a JPEG image", "give the network's file"),
    (0, b"\x89PNG", "a PNG image", "give the network's file"),
    (0, b"%PDF", "a PDF", "give the network's file"),
    (0, b"<", "text, HTML or XML", "download the file itself"),
    (0, b"\x1f\x8b", "a gzip archive", "unpack it first"),
)


def other_file(start: bytes) -> tuple[str, str] | None:
    """What a file that was taken for a network is, told by how it begins.

    Args:
        start: The first bytes, 16 or more where the file has as many.

    Returns:
        What it is and what to do; None where that is not known.
    """
    if start[:1] == b"\x08" and start[2:3] in (b"\x12", b"\x1a", b"\x3a", b"\x42"):
        return (
            "an ONNX model",
            "name it .onnx",
        )  # its first field is a small number, the next follows
    kinds = [
        (kind, cure) for place, magic, kind, cure in _OTHER_FILES if start.startswith(magic, place)
    ]
    return kinds[0] if kinds else None


def read_onnx(path: Path, *, side_files: bool = False) -> ModelProto:
    """Read an ONNX file.

    Args:
        path: The file.
        side_files: Whether weights may lie in other files beside it, as in large models that users
            bring along; never in a bundle's, whose hashes would not cover them.

    Returns:
        The model with all its weights in memory, local functions inlined.

    Raises:
        ModelError: The file or a side file cannot be read, is larger than the limits, is not an ONNX
            model that can be used, or has side files and must not.
    """
    try:
        data = read_file(path, "MODEL_MB", ModelError)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    return parse_onnx(data, str(path), real_path(path).parent if side_files else None)


def parse_onnx(data: bytes, name: str, folder: Path | None = None) -> ModelProto:
    """Read a serialized ONNX model.

    Args:
        data: The bytes.
        name: What errors call the model.
        folder: Where its side files lie; None for a model that must not have any.

    Returns:
        The model with all its weights in memory, local functions inlined.

    Raises:
        ModelError: As `read_onnx`.
    """
    if not data:
        raise ModelError(f"{name} is empty; expected an ONNX model")
    if data.startswith(b"version https://git-lfs"):
        raise ModelError(f"{name} is a Git LFS pointer, not the model", "run `git lfs pull`")
    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, ValueError) as error:
        kind = other_file(data[:16])
        if kind and kind[0] != "an ONNX model":
            raise ModelError(f"{name} is {kind[0]}; expected an ONNX model", kind[1]) from error
        raise ModelError(f"{name} is not an ONNX model, or is damaged: {error}") from error
    if not model.graph.node or not model.opset_import:
        raise ModelError(f"{name} is not an ONNX model: it holds no graph")
    try:
        if model.functions:
            check_limit("NODES", _inlined_size(model), name, ModelError)
            model = onnx.inliner.inline_local_functions(model)
            if model.functions:  # of another opset: their tensors would not be looked at
                raise ModelError("its local functions cannot be inlined", "export it without them")
        check_limit("NODES", sum(1 for _ in _nodes(model.graph)), name, ModelError)
        _load_side_files(model, name, folder)
        for tensor in _tensors(model.graph):
            _check_tensor(tensor)
        _check_texts(model)
        _check_nodes(model)
    except ModelError as error:
        message = error.message if error.message.startswith(name) else f"{name}: {error.message}"
        raise ModelError(message, error.hint) from None
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelError(f"{name} is not an ONNX model: {first_line(error)}") from error
    return model


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """The nodes of a graph and of the bodies in it."""
    for node in graph.node:
        yield node
        for body in _bodies(node):
            yield from _nodes(body)


def _bodies(node: NodeProto) -> Iterator[GraphProto]:
    for item in node.attribute:
        if item.type == AttributeProto.GRAPH:
            yield item.g
        yield from item.graphs


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """The constants of a graph, of its nodes' attributes and of the bodies in it."""
    if graph.sparse_initializer:
        raise ModelError("it holds sparse weights, which fr-edge does not read")
    yield from graph.initializer
    for node in graph.node:
        for item in node.attribute:
            if item.type in (AttributeProto.SPARSE_TENSOR, AttributeProto.SPARSE_TENSORS):
                raise ModelError("it holds sparse weights, which fr-edge does not read")
            if item.type == AttributeProto.TENSOR:
                yield item.t
            yield from item.tensors
        for body in _bodies(node):
            yield from _tensors(body)


def _inlined_size(model: ModelProto) -> int:
    """Nodes of the model when every local function is inlined; raises ModelError for a cycle."""
    functions: Mapping[tuple[str, str], FunctionProto] = {
        (function.domain, function.name): function for function in model.functions
    }
    sizes: dict[tuple[str, str], int] = {}
    open_calls: set[tuple[str, str]] = set()

    def size(nodes: Iterable[NodeProto]) -> int:
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type)
            if key not in functions:
                total += 1 + sum(size(body.node) for body in _bodies(node))
                continue
            if key not in sizes:
                if key in open_calls or len(open_calls) > _MAX_RANK:
                    raise ModelError(f"its function {key[1]} calls itself, or goes too deep")
                open_calls.add(key)
                sizes[key] = size(functions[key].node)
                open_calls.discard(key)
            total += sizes[key]
        return total

    return size(model.graph.node)


def _load_side_files(model: ModelProto, name: str, folder: Path | None) -> None:
    outside = [t for t in _tensors(model.graph) if t.data_location == TensorProto.EXTERNAL]
    if outside and folder is not None:
        total = sum(map(_expected_bytes, outside))
        check_limit("SIDE_FILES_MB", total, f"{name} with its side files", ModelError)
    for tensor in outside:
        if folder is None:
            raise ModelError(
                "it keeps weights in side files, which are not hashed with it",
                "export it again: `fr-edge export` writes one file",
            )
        tensor.raw_data = _external_data(tensor, folder)
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]


def _external_data(tensor: TensorProto, folder: Path) -> bytes:
    place = {entry.key: entry.value for entry in tensor.external_data}
    location, size = place.get("location", ""), _expected_bytes(tensor)
    what = "it keeps weights in side files that cannot be read"
    hint = "keep the side files (often NAME.onnx.data) in the model's folder"
    parts = PurePosixPath(location).parts
    if not parts or parts[0] == "/" or ".." in parts or not location.isprintable():
        raise ModelError(f"{what}: {location!r} is outside its folder", hint)
    path = folder.joinpath(*parts)
    if any(p.is_symlink() for p in (path, *path.parents[: len(parts) - 1])):
        raise ModelError(f"{what}: {location} is a link", hint)
    try:
        offset, length = int(place.get("offset", 0)), int(place.get("length", size))
        with open_file(path, None, ModelError) as stream:
            stream.seek(offset)
            data = stream.read(size)
    except (OSError, ValueError) as error:
        raise ModelError(f"{what}: {error}", hint) from error
    if length != size or len(data) != size:
        raise ModelError(
            f"{what}: {location} holds {min(length, len(data)):,} bytes for {tensor.name},"
            f" expected {size:,}",
            hint,
        )
    return data


def _expected_bytes(tensor: TensorProto) -> int:
    """The bytes of a tensor's numbers, by its type and shape."""
    if len(tensor.dims) > _MAX_RANK or any(dim < 0 for dim in tensor.dims):
        raise ModelError(f"tensor {tensor.name} has an impossible shape {list(tensor.dims)[:8]}")
    if tensor.data_type not in TensorProto.DataType.values() or not tensor.data_type:
        raise ModelError(f"tensor {tensor.name} has the unknown type {tensor.data_type}")
    count, kind = prod(tensor.dims), TensorProto.DataType.Name(tensor.data_type)
    if kind in _PACKED:
        return -(-count // _PACKED[kind])
    if kind == "STRING":
        return 0
    return count * int(tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _check_tensor(tensor: TensorProto) -> None:
    """Raise ModelError unless a tensor holds the numbers that its shape announces."""
    size = _expected_bytes(tensor)
    if tensor.data_type == TensorProto.STRING:
        if len(tensor.string_data) != prod(tensor.dims):
            raise ModelError(f"tensor {tensor.name} does not hold what its shape announces")
        return
    if tensor.HasField("raw_data"):
        if len(tensor.raw_data) != size:
            raise ModelError(
                f"tensor {tensor.name} holds {len(tensor.raw_data):,} bytes, its shape"
                f" {list(tensor.dims)} announces {size:,}"
            )
        return
    stored = max(
        len(tensor.float_data),
        len(tensor.int32_data),
        len(tensor.int64_data),
        len(tensor.double_data),
        len(tensor.uint64_data),
    )
    if 2 * stored < prod(tensor.dims) / 4:  # complex numbers take two, packed ones less than one
        raise ModelError(f"tensor {tensor.name} lacks most of the numbers that it announces")
    try:
        to_array(tensor)
    except Exception as error:  # numpy and onnx each raise their own
        raise ModelError(f"tensor {tensor.name} cannot be read: {first_line(error)}") from error


def _check_texts(model: ModelProto) -> None:
    """Raise ModelError unless every text is UTF-8: protobuf gives other bytes as they are."""
    graphs = [model.graph]
    texts = [model.producer_name, model.producer_version, model.domain, model.doc_string]
    texts += [opset.domain for opset in model.opset_import]
    texts += [text for item in model.metadata_props for text in (item.key, item.value)]
    while graphs:
        graph = graphs.pop()
        texts += [graph.name, graph.doc_string, *(tensor.name for tensor in graph.initializer)]
        for value in (*graph.input, *graph.output, *graph.value_info):
            texts += [value.name, value.doc_string]
            texts += [dim.dim_param for dim in value.type.tensor_type.shape.dim]
        for node in graph.node:
            texts += [node.op_type, node.domain, node.name, node.doc_string]
            texts += [*node.input, *node.output, *(item.name for item in node.attribute)]
            graphs += _bodies(node)
    if not all(isinstance(text, str) for text in texts):
        raise ModelError("it holds names or texts that are not UTF-8")


def _check_nodes(model: ModelProto) -> None:
    """Raise ModelError unless nodes have what their operators need, and no output is random."""
    newest = onnx.defs.onnx_opset_version()
    versions = {
        "" if o.domain in _STANDARD else o.domain: min(o.version, newest)
        for o in model.opset_import
    }
    schemas: dict[str, onnx.defs.OpSchema | None] = {}
    for node in _nodes(model.graph):
        what = f"node {node.name or node.op_type!r}"
        if not any(node.output):
            raise ModelError(f"{what} has no output")
        if node.domain not in _STANDARD:
            continue
        if node.op_type not in schemas:
            schemas[node.op_type] = _schema(node.op_type, versions.get("", newest))
        if schema := schemas[node.op_type]:
            _check_node(node, schema, what)
    _check_random(model.graph)


def _schema(operator: str, version: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(operator, version)
    except onnx.defs.SchemaError:
        return None  # an operator of a later version, or of none: what runs it says so


def _check_node(node: NodeProto, schema: onnx.defs.OpSchema, what: str) -> None:
    if len(node.input) < schema.min_input or len(node.output) < schema.min_output:
        raise ModelError(
            f"{what} has {len(node.input)} inputs and {len(node.output)} outputs; {node.op_type}"
            f" needs {schema.min_input} and {schema.min_output}"
        )
    for item in node.attribute:
        known = schema.attributes.get(item.name)
        if known and not item.ref_attr_name and _number(known.type) != item.type:
            raise ModelError(f"{what}: its attribute {item.name} is not of {node.op_type}'s type")


def _number(kind: Any) -> int:
    """An attribute's type as `AttributeProto` counts it."""
    return int(kind.value)


def _used_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """The nodes that an output of the graph depends on, and those of the bodies in them."""
    makers = {name: node for node in graph.node for name in node.output}
    wanted, seen = [value.name for value in graph.output], set[int]()
    while wanted:
        node = makers.get(wanted.pop())
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        bodies = list(_bodies(node))
        wanted += [value.name for body in bodies for value in body.output]
        for each in (node, *(inner for body in bodies for inner in _nodes(body))):
            wanted += each.input
            yield each


def _check_random(graph: GraphProto) -> None:
    """Dropout in training mode is random too; the mode is its third input."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for item in node.attribute if node.op_type == "Constant" else ():
            if item.type == AttributeProto.TENSOR:
                constants[node.output[0]] = item.t
    for node in _used_nodes(graph):
        if node.op_type in _RANDOM and node.domain in _STANDARD:
            raise ModelError(
                f"node {node.name or node.op_type!r} is {node.op_type}: the network's output is random",
                "export it again in inference mode (PyTorch: model.eval() first)",
            )
        if node.op_type != "Dropout" or len(node.input) < 3 or not node.input[2]:
            continue
        mode = constants.get(node.input[2])
        if mode is None or to_array(mode).any():
            raise ModelError(
                f"node {node.name or node.op_type!r} is Dropout in training mode: the network's"
                " output is random",
                "export it again in inference mode (PyTorch: model.eval() first)",
            )
