"""TorchScript files: a program of torch's own language, read before it is run.

Its text is parsed. Every call must be one of `tensor_operators`, or a method that the file itself
defines so; loops count up to a number, as torch's own functions have them. Then `torch.jit.load` runs no code but that.
"""

import ast
import io
import logging
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from ...errors import DataError, ModelError
from ...reading import check_limit, open_file
from .tensor_operators import is_tensor_operator

logger = logging.getLogger(__name__)

_MAX_TEXT = 32 << 20  # bytes of program text; a 200-layer network has 1 MB

_FUNCTIONS = frozenset(  # of the language itself
    [
        "annotate",
        "int",
        "float",
        "bool",
        "str",
        "getattr",
        "uninitialized",
        "unchecked_cast",
        "len",
        "min",
        "max",
        "abs",
        "round",
        "isinstance",
        "range",
    ]
)

_PRIMITIVES = frozenset(  # of `ops.prim`
    [
        "NumToTensor",
        "RaiseException",
        "dtype",
        "device",
        "layout",
        "is_cuda",
        "is_nested",
        "requires_grad",
        "min",
        "max",
        "abs",
        "data",
        "is_cpu",
        "is_mkldnn",
        "is_quantized",
        "is_sparse",
        "shape",
        "index",
        "TupleUnpack",
        "unchecked_cast",
        "itemsize",
        "type",
    ]
)

_STATEMENTS = (ast.While, ast.With, ast.Try, ast.Lambda, ast.AsyncFor, ast.ListComp)

_FOREIGN = re.compile(rb"torch\.classes|__backends__")  # objects of compiled libraries


def is_torchscript(members: list[str]) -> bool:
    """Tell whether an archive of torch holds TorchScript.

    Args:
        members: Names of its files.
    """
    return any("/code/" in f"/{member}" for member in members)


def load_torchscript(path: Path) -> nn.Module:
    """Load a network that `torch.jit.save` wrote.

    Args:
        path: The file.

    Returns:
        The network on the CPU, in eval mode.

    Raises:
        ModelError: The file is damaged, or does what is not a network's: the message names it.
    """
    data = io.BytesIO()
    with open_file(path, "WEIGHTS_MB", ModelError) as stream:
        data.write(stream.read())
    _check_archive(path, data)
    data.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module: nn.Module = torch.jit.load(  # type: ignore[no-untyped-call]
                data, map_location="cpu"
            )
    except Exception as error:  # its loader raises RuntimeError and others
        text = str(error).strip().partition("\n")[0]
        raise ModelError(f"{path} is TorchScript that torch cannot load: {text}") from error
    logger.info("%s is TorchScript; its program calls tensor operators alone", path.name)
    return module.eval()


def _check_archive(path: Path, data: io.BytesIO) -> None:
    """Raise ModelError for a program that does more than a network."""
    try:
        texts = _texts(path, data)
    except DataError:
        raise
    except Exception as error:  # damaged members raise zlib's errors, RuntimeError and others
        raise ModelError(f"{path} is not a TorchScript file: {error}") from error
    if sum(map(len, texts.values())) > _MAX_TEXT:
        raise ModelError(f"{path} has more than {_MAX_TEXT >> 20} MB of program text")
    trees = []
    for name, text in texts.items():
        try:
            trees.append(ast.parse(text.decode()))
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ModelError(f"{path}: {name} is not TorchScript's text: {error}") from error
    methods = {
        node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
    }
    for tree in trees:
        for what in _unusual(tree, methods):
            raise ModelError(
                f"{path} is TorchScript that has {what}, which no face network needs: not run",
                "if you trust it: torch.onnx.export(torch.jit.load(FILE), ...), and give the ONNX"
                " file",
            )


def _texts(path: Path, data: io.BytesIO) -> dict[str, bytes]:
    """The program's text by member; raises ModelError for objects of compiled libraries."""
    data.seek(0)
    with zipfile.ZipFile(data) as archive:
        check_limit("WEIGHTS_MB", sum(i.file_size for i in archive.infolist()), path, ModelError)
        texts = {}
        for info in archive.infolist():
            if info.filename.endswith(".py") and "/code/" in f"/{info.filename}":
                texts[info.filename] = archive.read(info)
            elif info.filename.endswith(".pkl") and _FOREIGN.search(archive.read(info)):
                raise ModelError(f"{path} holds objects of a compiled library (torch.classes)")
    return texts


def _unusual(tree: ast.AST, methods: set[str]) -> Iterator[str]:
    """What a program does besides computing tensors."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield "an import"
        elif isinstance(node, _STATEMENTS) or (isinstance(node, ast.For) and not _counts(node)):
            yield f"a {type(node).__name__} statement"
        elif isinstance(node, ast.Call) and (name := _call(node.func, methods)):
            yield f"a call of {name}"
        elif isinstance(node, ast.Name) and node.id in ("exec", "eval"):
            yield node.id


def _counts(node: ast.For) -> bool:
    """Whether a loop is `for i in range(n)`."""
    call = node.iter
    return isinstance(call, ast.Call) and ast.unparse(call.func) == "range"


def _call(function: ast.expr, methods: set[str]) -> str:
    """The name of what is called where it is not known; "" where it is."""
    if isinstance(function, ast.Name):  # a function of the language, or one that is defined here
        local = function.id.startswith("_") or function.id in methods
        return "" if function.id in _FUNCTIONS or local else function.id
    if not isinstance(function, ast.Attribute):
        return "" if isinstance(function, ast.Call) else ast.unparse(function)
    root: ast.expr = function
    while isinstance(root, ast.Attribute):
        root = root.value
    whole = ast.unparse(function)
    if not isinstance(root, ast.Name) or root.id not in ("torch", "ops", "__torch__"):
        return "" if function.attr in methods else whole
    if root.id == "__torch__":  # a function or a class of this file
        return whole if ".classes." in whole else ""
    parts = whole.split(".")
    if parts[:2] == ["ops", "prim"]:
        known = len(parts) == 3 and parts[2] in _PRIMITIVES
    elif parts[:2] == ["ops", "aten"]:
        known = len(parts) == 3 and is_tensor_operator(parts[2])
    else:
        known = parts[0] == "torch" and len(parts) == 2 and is_tensor_operator(parts[1])
    return "" if known else whole
